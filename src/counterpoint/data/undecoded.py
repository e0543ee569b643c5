"""Data sets whose pictures, sounds and documents stay the bytes or the path that they are.

``datasets`` opens what such a column names while a row is read: a file anywhere on the machine, or
an address on the network, whatever the data set's author wrote there. No text model can use it, so
nothing of it is opened.

1. A stream that its user has mapped, renamed or cut before it came here is decoded by that step.

Not here: refusing rows that have such a column (``formats``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Json,
    LargeList,
    List,
)

Rows = TypeVar("Rows")


def undecoded(data: Rows) -> Rows:
    """The same rows, of which reading opens nothing.

    Args:
        data: a data set, a stream, a dict of either, or anything else, which is returned as it is.

    Returns:
        The same kind; itself where there is nothing to decode.
    """
    if isinstance(data, DatasetDict | IterableDatasetDict | dict):
        parts = {name: undecoded(part) for name, part in data.items()}
        same = all(parts[name] is data[name] for name in parts)
        return data if same else type(data)(parts)
    if not isinstance(data, Dataset | IterableDataset) or data.features is None:
        return data
    features = Features({name: _closed(one) for name, one in data.features.items()})
    if features == data.features:
        return data
    if isinstance(data, IterableDataset):
        # also undoes the threads in which streams of the hub are decoded ahead
        stream: Rows = data.decode(False).cast(features)
        return stream
    made = copy.deepcopy(data)  # tables are shared; Dataset.cast would write all rows anew
    made.info.features = features
    return made


def _closed(feature: Any) -> Any:
    """A feature, however nested, with ``decode`` switched off."""
    if isinstance(feature, Mapping):
        return {name: _closed(one) for name, one in feature.items()}
    if isinstance(feature, list | tuple):
        return [_closed(one) for one in feature]
    if isinstance(feature, List | LargeList):
        inner = copy.copy(feature)
        inner.feature = _closed(feature.feature)
        return inner
    # Json is data itself, and opens nothing
    if getattr(feature, "decode", False) is True and not isinstance(feature, Json):
        return dataclasses.replace(feature, decode=False)
    return feature
