"""Shared-prompt attention on CUDA: one FlashAttention call for all completions of a row.

FlashAttention's variable-length form takes sequences whose queries are the last of their keys.
A prompt gives one for each completion: prompt + the first over itself, and each other completion
over the prompt and itself. Queries and results lie in the row as they are; only keys and values of
a prompt are there as often as it has completions. Nothing masked is computed, no length is padded,
and a layer launches the same few kernels however many pairs there are.

A kernel of someone else's, on a machine that no test has seen: only what has been compared with
the pairwise way (``kernel_proof``) goes through it.

Not here: float32, soft-caps, sinks and CPUs, which go pair by pair (``pairwise_attention``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.pair_segments import PairSegments

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a build of torch without it
    varlen_attn = None

_TAKES = signature(varlen_attn).parameters if varlen_attn is not None else {}
AVAILABLE = "window_size" in _TAKES
"""Whether torch is new enough: since 2.11 the scale and the mask can be chosen."""

WIDEST = 256
"""Largest width of a head that FlashAttention takes."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A kind of attention, apart from lengths and dtype.

    Args:
        heads: of queries.
        kv_heads: of keys and values.
        width: of a head's queries and keys.
        value_width: of a head's values.
        window: a query sees that many positions back, itself included; None: all.
        plain: whether nothing but the mask stands between scores and softmax.
    """

    heads: int
    kv_heads: int
    width: int
    value_width: int
    window: int | None
    plain: bool

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> AttentionCall:
        """The kind of a call of ``attend_to_pairs``."""
        return cls(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            width=query.shape[-1],
            value_width=value.shape[-1],
            window=options["window"],
            plain=options["softcap"] is None and options["sinks"] is None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class VarlenPlan:
    """Where the sequences of a row of pairs begin, and which tokens their keys come from.

    Args:
        key_source: token behind each key.
        first_copy: key that is the first copy of each token.
        copies: prompt tokens and, under each, the key that is a further copy of it: for the second
            completion of every prompt, then for the third of those that have one, and so on.
        query_starts: where the queries of each sequence begin, and the end; int32.
        key_starts: the same for keys; int32.
        most_queries: queries of the longest sequence.
        most_keys: keys of the longest sequence.
    """

    key_source: Int[Tensor, " keys"]
    first_copy: Int[Tensor, " tokens"]
    copies: tuple[Int[Tensor, "2 _"], ...]
    query_starts: Int[Tensor, " starts"]
    key_starts: Int[Tensor, " starts"]
    most_queries: int
    most_keys: int


def varlen_plan(segments: Sequence[PairSegments], device: torch.device) -> VarlenPlan:
    """The plan of a row.

    Args:
        segments: where each pair lies; they cover the row without gaps.
        device: where attention runs.
    """
    tokens, queries, keys = [], [0], [0]
    first: list[Any] = []
    further: list[list[Any]] = [[] for _ in range(max(len(s.completions) for s in segments) - 1)]
    for segment in segments:
        start, prompt = segment.start, segment.prompt
        asked = np.arange(start, start + prompt)
        split = start + prompt + segment.completions[0]
        one = keys[-1] + split - start
        tokens.append(np.arange(start, split))
        first.append(np.arange(keys[-1], one))
        queries.append(split)
        keys.append(one)
        # those of further completions, as many as this prompt has
        for copies, length in zip(further, segment.completions[1:], strict=False):
            tokens += [asked, np.arange(queries[-1], queries[-1] + length)]
            copies.append(np.stack([asked, np.arange(keys[-1], keys[-1] + prompt)]))
            end = keys[-1] + prompt + length
            first.append(np.arange(end - length, end))
            queries.append(queries[-1] + length)
            keys.append(end)

    def there(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        found = torch.as_tensor(values, dtype=dtype)
        if device.type == "cuda":
            found = found.pin_memory()
        return found.to(device, non_blocking=True)

    return VarlenPlan(
        key_source=there(np.concatenate(tokens)),
        first_copy=there(np.concatenate(first)),
        copies=tuple(there(np.concatenate(copies, 1)) for copies in further),
        query_starts=there(queries, torch.int32),
        key_starts=there(keys, torch.int32),
        most_queries=int(np.diff(queries).max()),
        most_keys=int(np.diff(keys).max()),
    )


def varlen_takes(call: AttentionCall, dtype: torch.dtype) -> bool:
    """Whether the kernel is there and says that it can compute this attention on CUDA.

    Args:
        call: the attention.
        dtype: in which it would run.
    """
    return (
        AVAILABLE
        and dtype in (torch.bfloat16, torch.float16)
        and call.plain
        and call.width <= WIDEST
        and call.width % 8 == 0
        and call.value_width <= call.width
    )


def running_dtype(query: Tensor) -> torch.dtype:
    """In which dtype attention runs: under autocast in that of products, as PyTorch's own does.

    Args:
        query: as it comes; a norm of queries and keys may have made it float32.
    """
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def attend_varlen(
    query: Float[Tensor, "one heads tokens width"],
    key: Float[Tensor, "one kv_heads tokens width"],
    value: Float[Tensor, "one kv_heads tokens value_width"],
    plan: VarlenPlan,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "one tokens heads value_width"]:
    """Attention over one row of pairs; see ``pairwise_attention.attend_to_pairs``.

    Args:
        query: rotated already, on CUDA, its ``running_dtype`` of 16 bits.
        key: likewise; fewer heads where queries share them.
        value: likewise; at most as wide as the keys.
        plan: of the row.
        scaling: factor of the scores; None: the inverse square root of the width.
        window: a query sees that many positions back, itself included; None: all.
    """
    width, value_width = query.shape[-1], value.shape[-1]
    dtype = running_dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if value_width < width:  # the kernel knows one width
        value = F.pad(value, (0, width - value_width))
    options: dict[str, Any] = {
        "scale": scaling,
        "window_size": (-1 if window is None else window - 1, 0),
    }
    if query.shape[1] != key.shape[1] and "enable_gqa" in _TAKES:
        options["enable_gqa"] = True
    assert varlen_attn is not None  # varlen_takes() said so
    attended: Tensor = varlen_attn(
        query[0].transpose(0, 1),
        _rebuilt(key, plan),
        _rebuilt(value, plan),
        plan.query_starts,
        plan.key_starts,
        plan.most_queries,
        plan.most_keys,
        **options,
    )
    return attended[None, ..., :value_width]


def _rebuilt(states: Tensor, plan: VarlenPlan) -> Float[Tensor, "keys kv_heads width"]:
    rebuilt: Tensor = _Rebuild.apply(  # type: ignore[no-untyped-call]
        states[0].transpose(0, 1),
        plan.key_source,
        plan.first_copy,
        *plan.copies,
    )
    return rebuilt


class _Rebuild(torch.autograd.Function):
    """Gather with a gradient that gathers too: the one autograd writes adds atomically."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, source: Tensor, first: Tensor, *copies: Tensor) -> Tensor:
        """Prompts as often as they have completions, everything else once."""
        ctx.save_for_backward(first, *copies)
        return states.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """A token's gradient is that of its copies together."""
        first, *copies = ctx.saved_tensors
        total = grads[0].index_select(0, first)
        for prompts, further in copies:
            # no prompt token is named twice, so that nothing is added in an order of chance
            total[prompts] += grads[0].index_select(0, further)
        return total, None, None, *[None for _ in copies]
