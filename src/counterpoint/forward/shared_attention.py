"""Attention for pairs that share their prompt: ``prompt | chosen | rejected`` in one row.

The prompt goes through the trunk once. Inside attention each completion is rebuilt: chosen is
causal over prompt + chosen, rejected queries see prompt + rejected, and no pair sees another.
Nothing masked is computed but the upper triangles. Pair by pair that suits a CPU, and any dtype
and mask; on CUDA one kernel does all pairs where it can (``varlen_attention``).

It hangs on transformers' public interface: a function registered with ``AttentionInterface``,
and the layout of the batch as an extra keyword of the forward call, which transformers hands to
attention. A keyword and not a global, since activation checkpointing calls attention again
during the backward. Without the keyword (text generation in a callback, say) the model's own
attention runs. A keyword that nobody here knows might change what is attended to, on long rows
only perhaps: it is refused, so that the proof on short rows proves the long ones too.

Not here: whether a model may share its prompts (``layout``), how rows are laid (``data.collate``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from counterpoint.forward.varlen_attention import (
    AttentionCall,
    VarlenPlan,
    attend_varlen,
    running_dtype,
    varlen_is_proved,
    varlen_plan,
)
from counterpoint.records import PairSegments

KEYWORD = "shared_row"
BACKENDS = ("sdpa", "eager")
"""Attention implementations of transformers that can be stood in for."""

HARMLESS = {
    "cache_position",
    "dropout",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Keywords of attention that change nothing in training, or show on the shortest row."""

_calls: ContextVar[set[AttentionCall] | None] = ContextVar("calls", default=None)


@dataclass(frozen=True, slots=True, eq=False)
class SharedRow:
    """What attention is told of a row of pairs, once for all layers.

    Args:
        segments: where each pair lies; they cover the row without gaps.
        plan: the same for the kernel that takes all pairs at once, on CUDA.
    """

    segments: tuple[PairSegments, ...]
    plan: VarlenPlan | None

    @classmethod
    def of(cls, segments: tuple[PairSegments, ...], device: torch.device) -> SharedRow:
        """The row of some pairs on a device."""
        return cls(segments, varlen_plan(segments, device) if device.type == "cuda" else None)


@contextmanager
def shared_attention(model: nn.Module) -> Iterator[None]:
    """While open, the model's attention understands shared prompts.

    Open it around forward *and* backward: checkpointed activations are computed again there.

    Args:
        model: unwrapped from distributed training, with an attention of ``BACKENDS``.
    """
    inner: Any = model
    own = inner.config._attn_implementation
    inner.set_attn_implementation(_name(own))
    try:
        yield
    finally:
        inner.set_attn_implementation(own)


@contextmanager
def watched_calls() -> Iterator[set[AttentionCall]]:
    """While open, the kinds of calls that shared rows make are put into the set."""
    calls: set[AttentionCall] = set()
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def attend_to_pairs(
    query: Float[Tensor, "one heads tokens width"],
    key: Float[Tensor, "one kv_heads tokens width"],
    value: Float[Tensor, "one kv_heads tokens value_width"],
    segments: tuple[PairSegments, ...],
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "one tokens heads value_width"]:
    """Attention over one row of pairs.

    Args:
        query: rotated already, at the positions of ``PairBatch.position_ids``.
        key: likewise; fewer heads where queries share them.
        value: likewise.
        segments: where each pair lies; they cover the row without gaps.
        scaling: factor of the scores; None: the inverse square root of the width.
        window: a query sees that many positions back, itself included; None: all.
        softcap: bound of the scores (Gemma 2); None for none.
        sinks: a score that every query of a head has for nothing (gpt-oss); None for none.

    Returns:
        The attended values, token by token.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # split and not slices: the gradient of each slice would be as long as the whole row
    ways = [length for segment in segments for length in segment[2:]]
    own = [n for s in segments for n in (s.prompt + s.chosen, s.rejected)]
    queries = torch.split(query, own, 2)
    keys, values = torch.split(key, ways, 2), torch.split(value, ways, 2)
    parts = []
    for pair in range(len(segments)):
        prompt, chosen, rejected = range(3 * pair, 3 * pair + 3)
        for side, completion in enumerate((chosen, rejected)):
            parts.append(
                _causal(
                    queries[2 * pair + side],
                    torch.cat([keys[prompt], keys[completion]], 2),
                    torch.cat([values[prompt], values[completion]], 2),
                    scaling,
                    window,
                    softcap,
                    sinks,
                )
            )
    return torch.cat(parts, 2).transpose(1, 2)


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The last queries of a sequence over all of its keys."""
    queries, keys = query.shape[2], key.shape[2]
    narrow = window is not None and window < keys
    plain = softcap is None and sinks is None
    if plain and queries == keys and not narrow:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    mask = _mask(queries, keys, window if narrow else None, query.device)
    if plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1, dtype=_wide(scores.dtype))[..., :keys]
    return weights.to(value.dtype) @ value


def _mask(
    queries: int, keys: int, window: int | None, device: torch.device
) -> Bool[Tensor, "queries keys"]:
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _stand_in(own: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        row: SharedRow | None = kwargs.pop(KEYWORD, None)
        if row is None:
            original: Any = AttentionInterface._global_mapping.get(own)
            if original is None:  # every model file has an eager attention of its own
                original = sys.modules[type(module).__module__].eager_attention_forward
            result: tuple[Tensor, Tensor | None] = original(
                module, query, key, value, attention_mask, *args, **kwargs
            )
            return result
        attended = _attend(query, key, value, row, **_known(kwargs))
        return attended.contiguous(), None

    return attention


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What attention is asked for, in our words."""
    names = {
        "scaling": "scaling",
        "sliding_window": "window",
        "softcap": "softcap",
        "s_aux": "sinks",
    }
    given = {name for name, value in kwargs.items() if value is not None}
    strange = sorted(given - HARMLESS - names.keys())
    if strange:
        msg = f"attention is called with {', '.join(strange)}, which sharing does not know"
        raise NotImplementedError(msg)
    return {ours: kwargs.get(theirs) for theirs, ours in names.items()}


def _attend(
    query: Tensor, key: Tensor, value: Tensor, row: SharedRow, **options: Any
) -> Float[Tensor, "one tokens heads value_width"]:
    """The kernel for all pairs at once where it has proved itself, else pair by pair."""
    call = AttentionCall.of(query, key, value, options)
    calls = _calls.get()
    if calls is not None:
        calls.add(call)
    if row.plan is not None and varlen_is_proved(call, running_dtype(query)):
        scaling, window = options["scaling"], options["window"]
        return attend_varlen(query, key, value, row.plan, scaling=scaling, window=window)
    return attend_to_pairs(query, key, value, row.segments, **options)


def _name(own: str) -> str:
    return f"counterpoint_{own}"


for _own in BACKENDS:
    AttentionInterface.register(_name(_own), _stand_in(_own))
    AttentionMaskInterface.register(_name(_own), AttentionMaskInterface._global_mapping[_own])
