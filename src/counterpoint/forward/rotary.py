"""Rotary positions whose frequencies depend on the longest row of a batch.

Two of transformers' kinds change with it, past the model's original context, and a pair would be
worth one thing beside a short neighbour and another beside a long one:

1. "longrope" (Phi 3) takes another set of frequencies for all rows as soon as one is longer; so
   pairs that are longer than the original context must not share a batch with others;
2. "dynamic" takes frequencies of the longest row, and keeps those of the longest batch so far;
   no cut of a step makes that a function of its pairs.

Not here: keeping such pairs apart (``step.assembly``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class LongRows:
    """From which length on rows change what their batch computes.

    Args:
        context: tokens of the longest row that changes nothing.
        separable: whether it is enough to keep longer rows apart from the others.
    """

    context: int
    separable: bool


def long_rows(model: nn.Module) -> LongRows | None:
    """What is to be known of a model's rotary positions; None for nearly all models.

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
    """
    inner: Any = model
    config = inner.config.get_text_config()
    found = [
        LongRows(
            int(kind.get("original_max_position_embeddings") or config.max_position_embeddings),
            separable=kind["rope_type"] == "longrope",
        )
        for kind in _kinds(getattr(config, "rope_parameters", None))
        if kind["rope_type"] == "longrope" or "dynamic" in kind["rope_type"]
    ]
    # of several kinds of layers the strictest counts
    return min(found, key=lambda rows: (rows.separable, rows.context), default=None)


def _kinds(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters themselves, or those of each kind of layers."""
    if not isinstance(parameters, Mapping):
        return
    if "rope_type" in parameters:
        yield parameters
        return
    for nested in parameters.values():
        yield from _kinds(nested)
