"""Checks of constraints: their log lines and held-out values in, an alarm or nothing out.

Whether a bound is held is judged on the run's last quarter, at its last line: before that a
multiplier may still be on its way. An infeasible bound (CW441) is the trainer's to raise, which
sees every step.

Not here: other metrics (``of_curves``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from counterpoint.alarms.curve import noise
from counterpoint.runlog import Alarm, constraint_metrics

LEAST_LINES = 4
"""Lines of a last quarter from which it is judged: fewer say nothing of how far chance goes."""

STANDARD_ERRORS = 4.0
"""By how many the mean of a quarter must be above the bound; chance is, in one run of thousands."""

SWING = 6.0
"""Least height of a swing, in noises of a line; noise alone spans it in a run of thousands."""

SWINGS = 6
"""Swings in a row, three there and three back, before they are called an oscillation."""

DAMPED = 0.7
"""Share of their first height to which the last swings have fallen, if they die away."""


@dataclass(frozen=True, slots=True)
class Point:
    """A constraint in one log line.

    Args:
        step: of the line.
        value: of the training estimate.
        bound: of it.
        multiplier: after the line's last step.
        feasible: share of the line's steps that held the bound.
    """

    step: int
    value: float
    bound: float
    multiplier: float
    feasible: float

    @property
    def violation(self) -> float:
        """By how much the value is above the bound."""
        return self.value - self.bound


def points_of(entry: Mapping[str, Any]) -> dict[str, Point]:
    """The constraints of a log line, by name; those that nothing counted for are left out."""
    wanted = ("value", "bound", "multiplier", "feasible")
    return {
        name: Point(int(entry["step"]), *(one[key] for key in wanted))
        for name, one in constraint_metrics(entry).items()
        if one.keys() >= set(wanted)
    }


def held_out_of(entry: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Held-out violations of an evaluation, by constraint.

    Args:
        entry: the evaluation.
        prefix: of the set's metrics, such as "eval_".
    """
    found = constraint_metrics(entry, prefix)
    return {name: one["violation"] for name, one in found.items() if "violation" in one}


def is_last(step: int, before: int, steps: int) -> bool:
    """Whether a line is the last one that the run will have; it need not be of the last step.

    Args:
        step: of the line.
        before: of the line before it; 0 for the first.
        steps: of the whole run; 0 where that is not known.
    """
    return 0 < steps < step + max(1, step - before)


def surely_above(violations: Sequence[float]) -> bool | None:
    """Whether their mean is above 0, and not by chance; None where they are too few to say."""
    if len(violations) < LEAST_LINES:
        return None
    return fmean(violations) > chance_of(violations)


def chance_of(violations: Sequence[float]) -> float:
    """How far above 0 chance may take the mean of two violations or more."""
    return STANDARD_ERRORS * stdev(violations) / sqrt(len(violations))


def last_quarter(points: Sequence[Point], steps: int) -> list[Point]:
    """The points of the last quarter of a run of so many steps."""
    return [point for point in points if point.step > 0.75 * steps]


def oscillation(points: Sequence[Point], name: str) -> Alarm | None:
    """CW442: the value swings around, and does not calm down.

    A swing is a turn of the violation by more than ``SWING`` times the noise of a line, which is
    read off neighbours (``curve.noise``).

    Args:
        points: of the run so far.
        name: of the constraint.
    """
    violations = [point.violation for point in points]
    turns = _turns(violations, SWING * noise(violations))
    if len(turns) <= SWINGS:
        return None
    heights = [abs(violations[b] - violations[a]) for a, b in pairwise(turns)]
    if fmean(heights[-3:]) < DAMPED * fmean(heights[:3]):
        return None
    since = points[turns[-SWINGS - 1]].step
    seen = (
        f"the value of {name} has swung around its bound {len(heights)} times, the last ones by "
        f"{fmean(heights[-3:]):.3g}, and does not calm down."
    )
    return Alarm("CW442", points[-1].step, since, seen)


def _turns(values: Sequence[float], least: float) -> list[int]:
    """Places of the highs and lows between which values move by at least so much."""
    if not values or least <= 0:
        return []
    turns, low, high, rising = [0], 0, 0, None
    for place, value in enumerate(values):
        low = place if value < values[low] else low
        high = place if value > values[high] else high
        if rising is not False and value < values[high] - least:
            turns += [high] * (high != turns[-1])
            rising, low = False, place
        elif rising is not True and value > values[low] + least:
            turns += [low] * (low != turns[-1])
            rising, high = True, place
    return turns


def slack(points: Sequence[Point], name: str, steps: int) -> Alarm | None:
    """CN443: the bound holds by itself.

    Args:
        points: of the whole run.
        name: of the constraint.
        steps: of the whole run.
    """
    last = last_quarter(points, steps)
    if len(last) < LEAST_LINES or any(p.multiplier > 0 or p.feasible < 1 for p in last):
        return None
    free = next((p.step for p in reversed(points) if p.multiplier > 0), 0)
    value, bound = fmean(p.value for p in last), last[-1].bound
    seen = (
        f"{name} was {value:.4g} in the last quarter, below its bound of {bound:.4g} without a "
        "multiplier: it changed nothing there."
    )
    return Alarm("CN443", last[-1].step, free, seen)


def not_held(points: Sequence[Point], name: str, steps: int) -> Alarm | None:
    """CW444: in the last quarter of the run the training estimate is above the bound.

    Args:
        points: of the whole run.
        name: of the constraint.
        steps: of the whole run.
    """
    last = last_quarter(points, steps)
    if not surely_above([point.violation for point in last]):
        return None
    since = next((p.step for p in reversed(points) if p.violation <= 0), 0)
    seen = (
        f"{name} was {fmean(p.value for p in last):.4g} on the training pairs of the last quarter, "
        f"above its bound of {last[-1].bound:.4g}; its multiplier is {last[-1].multiplier:.3g}."
    )
    return Alarm("CW444", last[-1].step, since, seen)


def not_held_out(
    points: Sequence[Point], violation: float, name: str, where: str, steps: int
) -> Alarm | None:
    """CW445: held on the training pairs, but not on others.

    Args:
        points: of the whole run.
        violation: of the run's last evaluation.
        name: of the constraint.
        where: name of the evaluation set.
        steps: of the whole run.
    """
    last = last_quarter(points, steps)
    above = [point.violation for point in last]
    if surely_above(above) is not False or violation <= chance_of(above):
        return None
    bound = last[-1].bound
    seen = (
        f"{name} was {fmean(p.value for p in last):.4g} on the training pairs of the last quarter "
        f"and {violation + bound:.4g} on {where}, above its bound of {bound:.4g}."
    )
    return Alarm("CW445", last[-1].step, last[0].step, seen)
