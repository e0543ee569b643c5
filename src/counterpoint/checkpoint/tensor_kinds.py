"""Tensors of torchao's optimizers, taken apart for a file and put together again.

Their kind is a name of ``KINDS``, so that a file cannot name any other class. What they are made of
are plain tensors, and facts that JSON can say.

Not here: the rest of an optimizer's state (``optimizer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from counterpoint.errors import SetupError

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "OptimState8bit": "torchao.optim.subclass_8bit",
        "OptimState4bit": "torchao.optim.subclass_4bit",
        "OptimStateFp8": "torchao.optim.subclass_fp8",
    }
)
"""Kind -> the module that has it."""

KIND, DTYPE = "tensor of kind", "dtype"


def as_parts(value: Any) -> Any:
    """A tensor of one of ``KINDS`` as a mapping; anything else as it is.

    Args:
        value: of an optimizer's state.
    """
    name = type(value).__name__
    if not isinstance(value, Tensor) or name not in KINDS:
        return value
    kind: Any = value
    names, facts = kind.__tensor_flatten__()
    return {
        KIND: name,
        "parts": {part: getattr(value, part) for part in names},
        "facts": [_said(fact) for fact in facts],
    }


def from_parts(value: Any) -> Any:
    """What ``as_parts`` was given.

    Args:
        value: read from a file.

    Raises:
        SetupError: CP512 for a kind that is not known, CP502 where its package is missing.
    """
    if not isinstance(value, dict) or KIND not in value:
        return value
    name = value[KIND]
    if name not in KINDS:
        raise SetupError("CP512", f"the optimizer's state has a tensor of a kind {name!r}.")
    try:
        kind = getattr(import_module(KINDS[name]), name)
    except ImportError as error:
        raise SetupError(
            "CP502", f"the optimizer's state is of torchao, which is not installed: {error}"
        ) from error
    return kind.__tensor_unflatten__(value["parts"], [_meant(fact) for fact in value["facts"]])


def _said(fact: Any) -> Any:
    if isinstance(fact, torch.dtype):
        return {DTYPE: str(fact).removeprefix("torch.")}
    return tuple(fact) if isinstance(fact, torch.Size) else fact


def _meant(fact: Any) -> Any:
    if isinstance(fact, dict):
        return getattr(torch, fact[DTYPE])
    return torch.Size(fact) if isinstance(fact, tuple) else fact
