"""Attention for pairs that share their prompt: ``prompt | chosen | rejected | gold`` in one row.

The prompt goes through the trunk once. Inside attention each completion is rebuilt: chosen is
causal over prompt + chosen, queries of another see the prompt and itself, and no pair sees another.
Nothing masked is computed but the upper triangles. Which kernel does that is a row of ``kernels``.

It hangs on transformers' public interface: a function registered with ``AttentionInterface``,
and the layout of the batch as an extra keyword of the forward call, which transformers hands to
attention. A keyword and not a global, since activation checkpointing calls attention again
during the backward. Without the keyword (text generation in a callback, say) the model's own
attention runs. A keyword that nobody here knows might change what is attended to, on long rows
only perhaps: it is refused, so that the proof on short rows proves the long ones too.

Not here: whether a model may share its prompts (``sharable``), how rows are laid (``rows``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from counterpoint.forward.kernels import (
    ATTENTION_KERNELS,
    PAIRWISE,
    KernelProofs,
    may_run,
    proofs_here,
    proofs_running,
)
from counterpoint.forward.varlen_attention import AttentionCall, running_dtype
from counterpoint.model_seams import attention_of
from counterpoint.pair_segments import PairSegments

_REGISTERED = AttentionInterface()

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
        plans: where each pair lies, as each kernel wants it that runs on the device; by name.
        proofs: of the model that attends. They lie here, since a backward that computes
            activations again may run in a thread that knows no context.
        blocks: of each pair which picture a token of its prompt is of, -1 for none, where the
            tokens of a picture see each other both ways; None where all look back alone.
        windowed: whether they do so in layers with a sliding window alone.
    """

    plans: Mapping[str, Any]
    proofs: KernelProofs
    blocks: tuple[Tensor, ...] | None = None
    windowed: bool = False

    @classmethod
    def of(cls, segments: tuple[PairSegments, ...], device: torch.device) -> SharedRow:
        """The row of some pairs, which cover it without gaps, on a device."""
        able = {name: one for name, one in ATTENTION_KERNELS.items() if one.runs_on(device)}
        plans = {name: one.plan(segments, device) for name, one in able.items()}
        return cls(plans, proofs_here())


@contextmanager
def shared_attention(model: nn.Module) -> Iterator[None]:
    """While open, the model's attention understands shared prompts.

    Open it around forward *and* backward: checkpointed activations are computed again there.

    Args:
        model: unwrapped from distributed training, with an attention of ``BACKENDS``.
    """
    inner: Any = model
    own: Any = attention_of(model)
    if own in map(_name, BACKENDS):
        # open already: experts are counted anew within a step that is done again
        yield
        return
    inner.set_attn_implementation(_name(own))
    try:
        with proofs_running(model):
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
            original: Any = _REGISTERED.get(own)
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
    """Through the first kernel that runs here and is right for the call."""
    call, dtype = AttentionCall.of(query, key, value, options), running_dtype(query)
    calls = _calls.get()
    if calls is not None:
        calls.add(call)
    both_ways = not row.windowed or options["window"] is not None
    if row.blocks is not None and both_ways:  # which one kernel knows of
        plan = row.plans[PAIRWISE.name]
        return PAIRWISE.run(query, key, value, plan, blocks=row.blocks, **options)
    name = next(name for name in row.plans if may_run(name, call, dtype, row.proofs))
    return ATTENTION_KERNELS[name].run(query, key, value, row.plans[name], **options)


def _name(own: str) -> str:
    return f"counterpoint_{own}"


for _own in BACKENDS:
    AttentionInterface.register(_name(_own), _stand_in(_own))
    AttentionMaskInterface.register(_name(_own), AttentionMaskInterface()[_own])
