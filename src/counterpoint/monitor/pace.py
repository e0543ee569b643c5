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
from transformers import TrainerCallback

from counterpoint.data.batching import length
from counterpoint.records import FILLER_ROW, TokenPair

COUNTED = ("pairs", "tokens")
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

    def count(self, pairs: Iterable[TokenPair]) -> None:
        """Take this rank's pairs of a step; fillers count nowhere."""
        real = [pair for pair in pairs if pair.row != FILLER_ROW]
        self._counts["pairs"] += len(real)
        self._counts["tokens"] += sum(map(length, real))

    def counts(self) -> Mapping[str, int]:
        """What this rank has counted since the last log line, by the names of ``COUNTED``."""
        return self._counts

    def metrics(self, counts: Mapping[str, int | float]) -> dict[str, float]:
        """Of the steps since the last call; then starts anew.

        Args:
            counts: ``COUNTED`` over all ranks.

        Returns:
            "pairs_per_second" and "tokens_per_second" of all ranks, "step_seconds", and
            "memory_mb" of this rank; none of them where no step was done.
        """
        steps, seconds = self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        self._counts = dict.fromkeys(COUNTED, 0)
        if not steps or seconds <= 0:
            return {}
        return {
            "pairs_per_second": counts["pairs"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "step_seconds": seconds / steps,
            "memory_mb": peak_memory(self._device) / MEGABYTE,
        }

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step is done."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._steps += 1
        self._since = now

    def _go_on(self, *args: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    # what comes before one of these is no step
    on_train_begin = on_epoch_begin = on_evaluate = on_save = _go_on


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of a CUDA device, else of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
