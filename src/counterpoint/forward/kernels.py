"""The kernels of the two costly places, the head and shared attention: one table each.

A row says what a kernel takes, how it runs, and whether it is trusted: one that is not ours is
compared with one that is before a run uses it, on the run's own shapes (``kernel_proof``,
``head.prove_head``). What was found belongs to the model that runs through them, and to its run's
checkpoints: a resumed run runs through the same kernels, and another run in the process finds out
for itself.

Not here: the kernels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from counterpoint.forward.affine_logps import affine_token_logps
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.token_logps import dense_token_logps, module_token_logps
from counterpoint.forward.varlen_attention import (
    AttentionCall,
    attend_varlen,
    varlen_plan,
    varlen_takes,
)
from counterpoint.pair_segments import PairSegments
from counterpoint.tables import add_row

# ---- the head ----


@dataclass(frozen=True, slots=True)
class Projection:
    """From the head's input to logits: softcap(scale * module(hidden)).

    Args:
        module: the head, with all that the model adds to its output; nothing is left to do where
            ``dense``.
        weight: all of its weight, where it is a matrix and a bias and nothing else; else None.
        bias: its bias, likewise, if it has one.
        scale: factor of the logits.
        softcap: bound of the logits, above 0; None for none.
        dtype: of the matrix products.
        dense: whether what comes in are the logits, which the model has computed itself.
    """

    module: Callable[[Tensor], Tensor]
    weight: Tensor | None
    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    dense: bool = False


@dataclass(frozen=True, slots=True)
class HeadKernel:
    """A way to the log-probability of each row's target.

    Args:
        name: of the kernel.
        takes: whether it can, given the head and the kind of device.
        run: head, hidden states ``[targets, width]`` and target ids ``[targets]`` -> the
            log-probability of each target in nats, differentiable, and the mean logit of each
            row, not differentiable; both in float32 or wider.
        trusted: whether the tests have proved it; else ``prove_head`` does, gradients included.
    """

    name: str
    takes: Callable[[Projection, str], bool]
    run: Callable[[Projection, Tensor, Tensor], tuple[Tensor, Tensor]]
    trusted: bool = False


def _tiles(head: Projection, hidden: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    assert head.weight is not None
    return affine_token_logps(
        hidden,
        head.weight,
        head.bias,
        target_ids,
        scale=head.scale,
        softcap=head.softcap,
        dtype=head.dtype,
    )


def _chunks(head: Projection, hidden: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    return module_token_logps(
        hidden, head.module, target_ids, scale=head.scale, softcap=head.softcap
    )


HEAD_KERNELS: dict[str, HeadKernel] = {
    one.name: one
    for one in (
        HeadKernel(
            # whether it trains, is frozen, or nothing needs a gradient: see affine_logps
            "tiles",
            takes=lambda head, device: head.weight is not None and not head.dense,
            run=_tiles,
            trusted=True,
        ),
        HeadKernel(
            "chunks",
            takes=lambda head, device: head.weight is None and not head.dense,
            run=_chunks,
            trusted=True,
        ),
        HeadKernel(
            "logits",
            takes=lambda head, device: head.dense,
            run=lambda head, logits, target_ids: dense_token_logps(logits, target_ids),
            trusted=True,
        ),
    )
}
"""Every kernel of a head; each head is taken by exactly one that is trusted."""


def trusted_head_kernel(head: Projection) -> str:
    """The name of the kernel that needs no proof for a head.

    Args:
        head: of any kind.
    """
    return next(name for name, one in HEAD_KERNELS.items() if one.trusted and one.takes(head, ""))


# ---- shared attention ----


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """A way to attend over a row of pairs that share their prompts.

    Args:
        name: of the kernel.
        devices: kinds of devices that it runs on; None for all.
        takes: whether it can compute a kind of call in a dtype.
        plan: where the pairs of a row lie, as it wants it, once for all layers.
        run: queries, keys, values and the plan, with the keywords of ``attend_to_pairs``; of a
            kernel that is not trusted only ``scaling`` and ``window`` have values.
        trusted: whether it is right without having been compared.
        owner: whose it is, for messages.
    """

    name: str
    devices: frozenset[str] | None
    takes: Callable[[AttentionCall, torch.dtype], bool]
    plan: Callable[[tuple[PairSegments, ...], torch.device], Any]
    run: Callable[..., Tensor]
    trusted: bool = False
    owner: str = "the kernel's"

    def runs_on(self, device: torch.device) -> bool:
        """Whether the kernel runs on a device."""
        return self.devices is None or device.type in self.devices


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, plan: Any, **options: Any) -> Tensor:
    scaling, window = options["scaling"], options["window"]
    return attend_varlen(query, key, value, plan, scaling=scaling, window=window)


PAIRWISE = AttentionKernel(
    "pairwise",
    devices=None,
    takes=lambda call, dtype: True,
    plan=lambda segments, device: segments,
    run=attend_to_pairs,
    trusted=True,
)
VARLEN = AttentionKernel(
    "varlen",
    devices=frozenset({"cuda"}),
    takes=varlen_takes,
    plan=varlen_plan,
    run=_attend_varlen,
    owner="FlashAttention's",
)

ATTENTION_KERNELS: dict[str, AttentionKernel] = {one.name: one for one in (VARLEN, PAIRWISE)}
"""Every kernel of shared attention; the first one that may run does."""

ProofKey = tuple[str, AttentionCall, torch.dtype]
KernelProofs = dict[ProofKey, str | None]
"""What comparing kernels has shown: None where one is right, else what was seen."""

PROOFS: KernelProofs = {}
"""What was found where no model's attention was running."""

_OF_MODELS: WeakKeyDictionary[nn.Module, KernelProofs] = WeakKeyDictionary()
_running: ContextVar[KernelProofs | None] = ContextVar("proofs", default=None)


def proofs_of(model: nn.Module) -> KernelProofs:
    """What was found for a model; filled in place.

    Args:
        model: unwrapped.
    """
    return _OF_MODELS.setdefault(model, {})


def proofs_here() -> KernelProofs:
    """Those of the model whose attention is running (``proofs_running``)."""
    found = _running.get()
    return PROOFS if found is None else found


@contextmanager
def proofs_running(model: nn.Module) -> Iterator[None]:
    """While open, proofs are a model's own.

    Args:
        model: unwrapped.
    """
    token = _running.set(proofs_of(model))
    try:
        yield
    finally:
        _running.reset(token)


def may_run(
    name: str, call: AttentionCall, dtype: torch.dtype, proofs: KernelProofs | None = None
) -> bool:
    """Whether an attention kernel is known to be right for a kind of call.

    Args:
        name: of the kernel.
        call: the attention.
        dtype: in which it runs.
        proofs: that decide; None: those of the model whose attention is running.
    """
    known = proofs_here() if proofs is None else proofs
    return ATTENTION_KERNELS[name].trusted or known.get((name, call, dtype), "unproved") is None


# ---- kernels of others ----


def register_head_kernel(kernel: HeadKernel) -> HeadKernel:
    """Add a kernel of the head, tried before those that are there.

    Args:
        kernel: with a name of its own.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(HEAD_KERNELS, kernel, "a kernel", first=True)


def register_attention_kernel(kernel: AttentionKernel) -> AttentionKernel:
    """Add a kernel of shared attention, tried before those that are there.

    Args:
        kernel: with a name of its own.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(ATTENTION_KERNELS, kernel, "a kernel", first=True)


# ---- what a run has found ----


def state_dict(proofs: KernelProofs) -> dict[str, Any]:
    """What comparing kernels has shown, ready for JSON.

    Args:
        proofs: of a model.
    """
    return {
        "attention": [
            {
                "kernel": name,
                "call": {field: getattr(call, field) for field in call.__dataclass_fields__},
                "dtype": str(dtype).removeprefix("torch."),
                "differs": differs,
            }
            for (name, call, dtype), differs in proofs.items()
        ]
    }


def load_state_dict(state: dict[str, Any], proofs: KernelProofs) -> None:
    """Trust the kernels that an earlier process found right, and no others of those it compared.

    Args:
        state: from ``state_dict``.
        proofs: of a model; changed in place.
    """
    for one in state["attention"]:
        call = AttentionCall(**one["call"])
        proofs[one["kernel"], call, getattr(torch, one["dtype"])] = one["differs"]
