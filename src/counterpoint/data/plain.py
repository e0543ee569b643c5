"""Values of numpy, torch and pandas become Python's own, so that every row is read in one way.

A row may come from a list, a stream, a ``Dataset`` in any format or a table of pandas; what it
holds is the same, and so is what is made of it.

Not here: what a value means (``cells``, ``formats``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_AS_IT_IS = (str, int, float, bool, type(None))

_NOTHING = ("NAType", "NaTType")
"""The types of pandas' ``NA`` and ``NaT``."""


def plain(value: Any) -> Any:
    """A value without types of other packages, however deep.

    Args:
        value: a cell or a whole row: scalars, arrays of any dimension (0 included), tensors,
            mappings, lists and tuples of all of these.

    Returns:
        Strings, numbers, booleans and None, in lists and dicts; anything else as it is.
    """
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is list or isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if kind is dict or isinstance(value, Mapping):  # in this order: asking for Mapping takes long
        return {str.__str__(k) if isinstance(k, str) else k: plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.floating):  # before tolist, which leaves a longdouble as it is
        return float(value)
    if kind.__name__ in _NOTHING:
        return None
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        listed = value.tolist()
        return listed if hasattr(listed, "dtype") else plain(listed)
    return value


def is_missing(value: Any) -> bool:
    """Whether a cell that is no number holds nothing: null, or the NaN that pandas writes there."""
    return value is None or (isinstance(value, float) and value != value)
