"""Whether a run fits so easily that nothing need be rehearsed.

A bound far above what any decoder needs, in a millisecond: small runs start as fast as ever.

Not here: how much is needed (``plan``).
"""

from __future__ import annotations

from typing import Any

from torch import nn

TIMES_HELD = 24
"""Bytes of a trained weight's gradient, moments, copy in 16 bits and second gradient, and more:
in float32 4 + 8 + 2 + 4."""

TIMES_KEPT = 64
"""Bytes that a matrix keeps of each number that goes in or out of it: a decoder's layer keeps
about 6, as measured over the inputs and outputs of all of its matrices."""

SCORE = 32
"""Bytes of an attention score where all of them are kept, as eager attention does."""


def surely_fits(model: nn.Module, tokens: int, longest: int, memory: int) -> bool:
    """Whether a step fits by far.

    Args:
        model: whose weights are there already.
        tokens: input tokens of a micro-batch.
        longest: tokens of its longest sequence.
        memory: bytes that are left.
    """
    inner: Any = model
    config = inner.config.get_text_config()
    apart = {id(table.weight) for table in _tables(inner)}
    held = TIMES_HELD * sum(weight.numel() for weight in model.parameters())
    # experts' matrices have a dimension more, and may all be used
    wide = sum(
        (weight.shape[-1] + weight.shape[-2]) * weight.shape[:-2].numel()
        for weight in model.parameters()
        if weight.dim() >= 2 and id(weight) not in apart
    )
    layers, heads = (
        getattr(config, name, None) or 1 for name in ("num_hidden_layers", "num_attention_heads")
    )
    each = TIMES_KEPT * wide + SCORE * layers * heads * longest
    return 2 * (held + tokens * each) <= memory


def _tables(model: Any) -> list[Any]:
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [table for table in found if getattr(table, "weight", None) is not None]
