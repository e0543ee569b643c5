"""How fast a run trains: pairs, tokens and seconds of the steps since the last log line.

The clock runs from step to step, waiting for data included, and stands still while the run
evaluates or saves. A token is counted once, a prompt that both completions share included, so
that the number is the same in every layout. All of it is counted on the host, and waits for
no device; a step ends with a look at the device anyhow (``guard``).

Not here: adding up over ranks (``metrics``), how it is shown (``console``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainerCallback

from counterpoint import ranks
from counterpoint.data.batching import length
from counterpoint.forward.kept_features import kept_features
from counterpoint.monitor.utilization import TokenCost, peak_of, token_cost
from counterpoint.records import FILLER_ROW, TokenPair

COUNTED = ("pairs", "tokens", "predicted", "pictures", "pictures_kept")
MEGABYTE = 10**6


class Pace(TrainerCallback):
    """Counts and times the steps of one rank.

    Args:
        device: on which it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps, self._seconds, self._since = 0, 0.0, time.perf_counter()
        self._counts = dict.fromkeys(COUNTED, 0)
        self._cost: TokenCost | None = None
        self._peak: float | None = None

    def on_train_begin(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """What a token costs and the device could do is known from here on."""
        if model is not None:
            self._peak = peak_of(self._device, args[0], model)
            self._cost = None if self._peak is None else token_cost(model)
        self._go_on(model=model)

    def count(self, pairs: Iterable[TokenPair]) -> None:
        """Take this rank's pairs of a step; fillers count nowhere."""
        real = [pair for pair in pairs if pair.row != FILLER_ROW]
        self._counts["pairs"] += len(real)
        self._counts["tokens"] += sum(map(length, real))
        self._counts["predicted"] += sum(sum(map(len, one.completions)) for one in real)

    def _count_pictures(self, model: nn.Module | None, *, of_a_step: bool) -> None:
        """Take what the tower was asked for since the last call, or leave it out."""
        kept = None if model is None else kept_features(model)
        if kept is None:
            return
        shown, at_hand = kept.counted()
        if of_a_step:
            self._counts["pictures"] += shown
            self._counts["pictures_kept"] += at_hand

    def counts(self) -> Mapping[str, int]:
        """What this rank has counted since the last log line, by the names of ``COUNTED``."""
        return self._counts

    def metrics(self, counts: Mapping[str, int | float]) -> dict[str, float]:
        """Of the steps since the last call; then starts anew.

        Args:
            counts: ``COUNTED`` over all ranks.

        Returns:
            "pairs_per_second" and "tokens_per_second" of all ranks, "step_seconds", and
            "memory_mb" of this rank; where features of pictures are kept, "pictures_kept", the
            share of the pictures shown that were at hand; "mfu", where ``utilization`` knows it.
            None of them where no step was done.
        """
        steps, seconds = self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        self._counts = dict.fromkeys(COUNTED, 0)
        if not steps or seconds <= 0:
            return {}
        kept = (
            {"pictures_kept": counts["pictures_kept"] / counts["pictures"]}
            if counts["pictures"]
            else {}
        )
        return {
            "pairs_per_second": counts["pairs"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "step_seconds": seconds / steps,
            "memory_mb": peak_memory(self._device) / MEGABYTE,
            **self._utilization(counts, seconds),
            **kept,
        }

    def _utilization(self, counts: Mapping[str, int | float], seconds: float) -> dict[str, float]:
        if self._cost is None or self._peak is None:
            return {}
        needed = self._cost.flops(counts["tokens"], counts["predicted"])
        return {"mfu": needed / (seconds * self._peak * ranks.count())}

    def on_step_begin(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """What was looked at before it, as for a proof of layouts, is of no step."""
        self._count_pictures(model, of_a_step=False)

    def on_step_end(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """A step is done."""
        self._count_pictures(model, of_a_step=True)
        now = time.perf_counter()
        self._seconds += now - self._since
        self._steps += 1
        self._since = now

    def _go_on(self, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        self._count_pictures(model, of_a_step=False)
        self._since = time.perf_counter()

    # what comes before one of these is no step
    on_epoch_begin = on_evaluate = on_save = _go_on


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of a CUDA device, else of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
