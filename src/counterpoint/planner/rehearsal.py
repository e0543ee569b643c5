"""A micro-batch's forward and backward without data: what is held at every moment of it.

It runs what the trainer runs, layout, autocast, checkpointing and head included, on a twin whose
tensors have shapes only: no arithmetic, no memory, a second for a large model. What it cannot
show are buffers inside of operations. Fake tensors pose as a CPU's; an accelerator keeps nearly
the same, apart from the head's larger tiles (``demand``).

Not here: what lasts from step to step (``holdings``), conclusions (``demand``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from counterpoint.forward.head import Head
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.offload import activations_on_host, copied
from counterpoint.forward.token_scores import token_scores
from counterpoint.models.checkpointing import enable_checkpointing
from counterpoint.models.family import family_of
from counterpoint.planner.ledger import Ledger
from counterpoint.planner.pictures import Shown
from counterpoint.planner.readable import ReadableNumbers
from counterpoint.planner.shapes import Shape, batch_of
from counterpoint.records import PairBatch

AWAY = "on the host"
"""What the ledger calls memory that is not the device's."""

SEGMENTS = 24
"""Parts of the backward, each of which gets a line of its own: as many as many models' layers."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a micro-batch is computed.

    Args:
        layout: of its rows.
        autocast: dtype of products, where it is not that of the weights.
        checkpointing: arguments of activation checkpointing; None: off.
        accumulates: gradients of the step's earlier micro-batches are there already.
        share: of the layers that compute their activations again, where they do.
        offload: what waits for the backward waits on the host.
    """

    layout: str
    autocast: torch.dtype | None = None
    checkpointing: Mapping[str, Any] | None = None
    accumulates: bool = False
    share: float = 1.0
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes held at a moment, by what they are held for.

    Args:
        gradients: of weights, as far as they are there.
        activations: what the trunk's forward left, copies of weights for autocast included.
        head: hidden states, tiles of logits and results of the output head.
        passing: what the backward has at hand.
        gathered: what is whole for a moment of weights and gradients in shards; see ``sharding``.
    """

    gradients: int = 0
    activations: int = 0
    head: int = 0
    passing: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.gradients + self.activations + self.head + self.passing + self.gathered


PARTS = tuple(field.name for field in fields(Parts))


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of a micro-batch, for each of its input tokens.

    Args:
        done: all that are done, those of activations that are computed again included.
        useful: without what is computed twice.
    """

    done: float
    useful: float


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was held, weights and optimizer not counted.

    Args:
        tokens: input tokens of the micro-batch, padding included.
        stages: the most of the trunk's forward, of the head, and of each part of the backward.
        host: bytes that waited on the host at the most, where activations do.
        operations: of the trunk's forward; of the whole forward; of all.
        patches: of its pictures.
    """

    tokens: int
    stages: tuple[Parts, ...]
    host: int = 0
    operations: tuple[int, int, int] = (0, 0, 0)
    patches: int = 0

    def work(self, *, whole: bool) -> Work:
        """Operations for each token, and each patch.

        Args:
            whole: all weights train, so that a backward is worth two forwards and not one.
        """
        _, forward, every = self.operations
        tokens = self.tokens + self.patches
        return Work(every / tokens, (3 if whole else 2) * forward / tokens)

    @property
    def peak(self) -> Parts:
        """The most of all."""
        return max(self.stages, key=lambda parts: parts.total)


def rehearse(
    twin: nn.Module,
    mode: AbstractContextManager[Any],
    shapes: Sequence[Shape],
    way: Way,
    shown: Shown | None = None,
) -> Rehearsal:
    """Go through a micro-batch.

    Args:
        twin: from ``weightless_twin``; afterwards it checkpoints, if that is the way.
        mode: that the twin belongs to; with ``nullcontext()`` and a real model it all happens.
        shapes: of the micro-batch's pairs.
        way: how it is computed.
        shown: what each of them shows; None: nothing.

    Raises:
        Exception: whatever a model raises whose code asks for the values of its tensors.
    """
    inner: Any = twin
    batch, head = batch_of(shapes, way.layout, shown), family_of(inner.config).find_head(twin)
    trained = [weight for weight in twin.parameters() if weight.requires_grad]
    twin.train()
    if way.checkpointing is not None:
        enable_checkpointing(twin, way.checkpointing, way.share)
    ledger = Ledger("gradients", there=[*twin.parameters(), *twin.buffers()])
    away = _counted_away(ledger) if way.offload else nullcontext()
    read: Any = nullcontext() if shown is None else ReadableNumbers()  # type: ignore[no-untyped-call]
    with mode, read, ledger, LAYOUTS[way.layout].running(twin), _nothing_read():
        for weight in trained:
            weight.grad = torch.empty_like(weight) if way.accumulates else None
        begin = len(ledger.entries)
        ledger.kind = "activations"
        starts, done = [begin], list[int]()
        with away:
            logps = _forward(twin, head, batch, way, ledger, starts, done)
        done.append(ledger.operations)
        logps.sum().backward()  # type: ignore[no-untyped-call]
    ledger.rename((w.grad for w in trained if w.grad is not None), "gradients")
    del logps
    line = ledger.held()
    for weight in trained:
        weight.grad = None
    host = max((held.pop(AWAY, 0) for held in line), default=0)
    trunk, forward = done
    patches = LAYOUTS[way.layout].patches(batch.pairs)
    return Rehearsal(
        batch.cost - patches,
        tuple(_stages(line, starts)),
        host,
        (trunk, forward, ledger.operations),
        patches,
    )


def _forward(
    twin: nn.Module,
    head: Head,
    batch: PairBatch,
    way: Way,
    ledger: Ledger,
    starts: list[int],
    done: list[int],
) -> Tensor:
    """Log-probabilities; notes when the head begins, and when the trunk's backward does."""

    def turn(kind: str) -> None:
        ledger.kind = kind
        starts.append(len(ledger.entries))

    def at_head(states: Tensor) -> None:
        turn("head")
        done.append(ledger.operations)
        if states.requires_grad:
            states.register_hook(lambda _: turn("passing"))  # type: ignore[no-untyped-call]

    with torch.autocast("cpu", dtype=way.autocast, enabled=way.autocast is not None):
        return token_scores(twin, head, batch, at_head=at_head).logps


@contextmanager
def _nothing_read() -> Iterator[None]:
    """What transformers asks of the values of rows without a mask, answered for it.

    Their positions do not jump, so that no row holds several sequences; and the warning of old
    models that rows may be padded is not wanted.
    """
    asked = (
        (masking_utils, "find_packed_sequence_indices"),
        (PreTrainedModel, "warn_if_padding_and_no_attention_mask"),
    )
    own = [getattr(place, name) for place, name in asked]
    for place, name in asked:
        setattr(place, name, lambda *args: None)
    try:
        yield
    finally:
        for (place, name), function in zip(asked, own, strict=True):
            setattr(place, name, function)


def _counted_away(ledger: Ledger) -> AbstractContextManager[None]:
    """Activations on the host; their copies there are noted as such."""

    def going(tensor: Tensor) -> Tensor:
        before, ledger.kind = ledger.kind, AWAY
        copy = copied(tensor, tensor.device)
        ledger.kind = before
        return copy

    return activations_on_host(to_host=going)


def _stages(line: list[dict[str, int]], starts: list[int]) -> list[Parts]:
    """The most held between the starts, the last stretch in ``SEGMENTS``."""
    forward, head, *rest = starts
    back = rest[0] if rest else len(line)
    ends = [back + (len(line) - back) * n // SEGMENTS for n in range(SEGMENTS + 1)]
    bounds = [(forward, head), (head, back), *pairwise(ends)]
    nothing = line[forward - 1] if forward else {}
    return [_most(line[start:end] or [nothing]) for start, end in bounds]


def _most(line: list[dict[str, int]]) -> Parts:
    most = max(line, key=lambda held: sum(held.values()))
    return Parts(**{name: most.get(name, 0) for name in PARTS})
