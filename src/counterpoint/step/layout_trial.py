"""Which of two layouts is faster, by the clock: both take the same pairs forward and backward.

On a CPU a shared prompt is always a gain. On an accelerator it depends on the model, the lengths
and the kernels at hand, so a run with ``layout="auto"`` measures it there: once, on the pairs of
its first step, before that step. The layout that would be used has been proved by then, and loses
only where the clock says so. Each rank runs its own pairs, and the slowest rank's time counts, so
that all ranks come to the same end.

1. A few micro-batches of the reference give the pairs; each layout cuts these by the budget.
2. A round runs both. The first warms up, ``REPEATS`` are counted, and the medians are compared.
3. Where memory runs out, a layout is not the one. Where neither fits, the pairs are cut smaller.
   Where ranks meet in every pass no one can go back, and the run ends with CP505.

Nothing stays behind: gradients, buffers, modes and generators are as before. So the choice moves a
step's values by rounding only (law 1).

Not here: the proof (``forward.agreement``), what becomes of the result (``assembly``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from counterpoint import ranks
from counterpoint.data.batching import filler, length
from counterpoint.engine.memory import is_out_of_memory
from counterpoint.errors import SetupError, first_line
from counterpoint.forward.layouts import Layout
from counterpoint.records import PairBatch, TokenPair, exact_dtype
from counterpoint.step.random_states import generators_kept
from counterpoint.step.share import free
from counterpoint.tensor_parts import device_of_products

MICRO_BATCHES = 2
"""Micro-batches of the reference whose pairs are timed: the largest, and one of middle size."""

REPEATS = 3
"""Rounds that count, after one that does not."""

MOST_SECONDS = 30.0
"""After so many seconds no further round begins, if one has counted."""

Cut = Callable[[Layout, Sequence[TokenPair], int | None], list[PairBatch]]
"""A layout, pairs and most tokens of a micro-batch -> micro-batches on the device."""


def now() -> float:
    """Seconds on a clock that only moves forward."""
    return time.perf_counter()


@dataclass(frozen=True, slots=True)
class LayoutTimes:
    """What came out.

    Args:
        seconds: median of the rounds, by layout; None where memory ran out.
        pairs: that a round runs on this rank.
        rounds: that were counted.
    """

    seconds: Mapping[str, float | None]
    pairs: int
    rounds: int

    def is_slower(self, one: str, other: str) -> bool:
        """Whether a layout lost to another one; not where neither could be timed."""
        return self._of(one) > self._of(other)

    def _of(self, layout: str) -> float:
        seconds = self.seconds[layout]
        return math.inf if seconds is None else seconds

    def in_words(self) -> str:
        """Both times, for the log."""
        each = [
            f"{name} out of memory" if seconds is None else f"{name} {seconds:.3g} s"
            for name, seconds in self.seconds.items()
        ]
        return f"{', '.join(each)} for {self.pairs} pairs forward and backward"


class LayoutTrial:
    """Times layouts on the pairs of a step.

    Args:
        layouts: two or more; the last is the reference, whose micro-batches give the pairs.
        cut: how pairs become micro-batches.
        run: forward and backward of one micro-batch.
        device: of the model.
        together: whether ranks meet in every pass, so that all must run as many.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        cut: Cut,
        run: Callable[[Layout, PairBatch], None],
        device: torch.device,
        *,
        together: bool = False,
    ) -> None:
        self._layouts, self._cut, self._run = layouts, cut, run
        self._device, self._together = device, together

    def times(self, pairs: Sequence[TokenPair], most_tokens: int | None) -> LayoutTimes:
        """Time them; every rank must call it.

        Args:
            pairs: this rank's share of a step, at least one.
            most_tokens: of a micro-batch, or None.
        """
        parts = self._cut(self._layouts[-1], pairs, most_tokens)
        step = max(1, (len(parts) + 1) // MICRO_BATCHES)
        few = [pair for part in parts[::step][:MICRO_BATCHES] for pair in part.pairs]
        while True:
            batches = {one.name: self._batches(one, few, most_tokens) for one in self._layouts}
            found = self._rounds(batches, len(few))
            if any(seconds is not None for seconds in found.seconds.values()):
                return found
            # every rank has seen the same, and so goes on alike
            largest = max(batches[self._layouts[-1].name], key=lambda batch: batch.cost)
            alone = torch.tensor([len(largest), largest.cost // 2], device=self._device)
            pairs_left, most_tokens = (int(n) for n in ranks.least(alone))
            if pairs_left < 2:
                return found

    def _batches(
        self, layout: Layout, pairs: Sequence[TokenPair], most_tokens: int | None
    ) -> list[PairBatch]:
        batches = self._cut(layout, pairs, most_tokens)
        if self._together:
            count = ranks.most(torch.tensor(len(batches), device=self._device))
            short = filler(min(pairs, key=length))
            batches += [
                batch
                for _ in range(int(count) - len(batches))
                for batch in self._cut(layout, [short], None)
            ]
        return batches

    def _rounds(self, batches: Mapping[str, Sequence[PairBatch]], pairs: int) -> LayoutTimes:
        began, rounds = now(), list[list[float]]()
        for number in range(1 + REPEATS):
            order = self._layouts if number % 2 else self._layouts[::-1]
            mine = {one.name: self._seconds(one, batches[one.name]) for one in order}
            in_order = [mine[one.name] for one in self._layouts]
            kind = exact_dtype(self._device)
            slowest = torch.tensor([*in_order, now() - began], dtype=kind, device=self._device)
            *seconds, elapsed = ranks.most(slowest).tolist()
            fits = math.inf not in seconds
            if number or not fits:
                rounds.append(seconds)
            if not fits or (rounds and elapsed > MOST_SECONDS):
                break
        names = [one.name for one in self._layouts]
        return LayoutTimes(
            {
                name: None if math.inf in each else statistics.median(each)
                for name, each in zip(names, zip(*rounds, strict=True), strict=True)
            },
            pairs,
            len(rounds),
        )

    def _seconds(self, layout: Layout, batches: Sequence[PairBatch]) -> float:
        try:
            self._wait()
            start = now()
            for batch in batches:
                self._run(layout, batch)
            self._wait()
            return now() - start
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._together:  # the others wait in the middle of a pass, and cannot go back
                raise SetupError(
                    "CP505",
                    f"memory ran out while the {layout.name} layout was timed on micro-batches of "
                    f"up to {max(batch.cost for batch in batches)} tokens, in which all ranks take "
                    f"part ({first_line(error)}). Set max_micro_batch_tokens lower, or layout, "
                    "which is then not timed.",
                ) from error
        # here the traceback is gone, whose frames hold the graph of what failed
        free(self._device)
        return math.inf

    def _wait(self) -> None:
        """Let the device come to an end: it works on while the host goes on."""
        wait = getattr(getattr(torch, self._device.type, None), "synchronize", None)
        if wait is not None:
            wait()


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """In training mode; gradients, buffers, modes and torch's generators are as before in the end.

    Args:
        model: unwrapped from distributed training.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    try:
        with generators_kept(device_of_products(model)):
            for weight, _ in gradients:
                weight.grad = None
            model.train()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, gradient in gradients:
            weight.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
