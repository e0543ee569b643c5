"""How far a run is: of how many steps, and how long it will take.

Not here: how it stands otherwise (``story``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.runlog import Run


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is.

    Args:
        step: optimizer steps done, as far as a log line tells.
        steps: of the whole run; None where the run did not write it.
        left: seconds to the last step, at the pace so far; None where that is not known.
    """

    step: int
    steps: int | None
    left: float | None

    @property
    def counted(self) -> str:
        """The step, of how many: "340/2,000"."""
        return f"{self.step:,}" if self.steps is None else f"{self.step:,}/{self.steps:,}"


def progress_of(run: Run, now: float | None = None) -> RunProgress:
    """How far a run is.

    Args:
        run: as far as it is written.
        now: seconds since 1970; None asks the clock.
    """
    ended = run.facts.get("ended") or {}
    lines = [line for line in run.metrics if isinstance(line.get("step"), int)]
    step = max([*(line["step"] for line in lines), int(ended.get("step") or 0)], default=0)
    steps = _planned(run)
    if ended or steps is None:
        return RunProgress(step, steps, None)
    pace = _seconds_a_step(run, lines)
    if pace is None:
        return RunProgress(step, steps, None)
    since = (time.time() if now is None else now) - float(lines[-1].get("time", 0))
    return RunProgress(step, steps, max(0.0, pace * (steps - step) - since))


def _planned(run: Run) -> int | None:
    """Steps of the whole run: as it said when it began, or as its options do."""
    options = run.facts.get("options") or {}
    for found in (run.facts.get("steps"), options.get("max_steps")):
        if isinstance(found, int) and found > 0:
            return found
    return None


def _seconds_a_step(run: Run, lines: list[Mapping[str, Any]]) -> float | None:
    """Of the newest life: between its first line and its last, or from its beginning on."""
    begun = _beginning(run)
    told = [(int(line["step"]), float(line["time"])) for line in lines if "time" in line]
    life = [(step, at) for step, at in told if at >= begun[1]]
    for first in (*life[:1], begun):
        if life and life[-1][0] > first[0] and life[-1][1] > first[1] > 0:
            return (life[-1][1] - first[1]) / (life[-1][0] - first[0])
    return None


def _beginning(run: Run) -> tuple[int, float]:
    """Step and time at which the process that trains began."""
    resumed = (run.facts.get("resumed") or ())[-1:]
    for one in resumed:
        return int(one.get("step", 0)), float(one.get("time", 0))
    return 0, float(run.facts.get("started") or 0)
