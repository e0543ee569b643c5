"""Watches a run's log lines and evaluations as they come, and raises each alarm once an episode.

What is remembered follows from the lines alone, so that a resumed run watches on after reading
the lines of its checkpoint again; and ranks, whose lines are the same, see the same alarms.

Not here: the checks themselves (``of_curves``).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterpoint.alarms import of_constraints, of_curves
from counterpoint.alarms.curve import LEVEL, Curve
from counterpoint.alarms.of_constraints import Point, is_last
from counterpoint.alarms.of_curves import POOLED, PooledShare, pooled
from counterpoint.alarms.remedies import Facts
from counterpoint.runlog import Alarm

REST = 10
"""Lines in a row without it that end an episode; evaluations likewise."""

ACCURACY, MARGIN, NLL = "rewards/accuracies", "rewards/margins", "nll_loss"
CURVES = ("loss", "grad_norm", MARGIN, NLL)

_EVALUATION = re.compile(rf"eval_(?:(?P<name>.+)_)?{ACCURACY}")


class Watch:
    """The alarms of one run.

    Args:
        facts: of its options.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._read = 0
        self._step = self._skipped = 0
        self._curves = {name: Curve() for name in CURVES}
        self._first: list[PooledShare] = []
        self._recent: deque[PooledShare] = deque(maxlen=POOLED)
        self._evaluations: dict[str, list[tuple[PooledShare, float]]] = {}
        self._constraints: dict[str, list[Point]] = {}
        self._held_out: dict[tuple[str, str], int] = {}  # (constraint, set) -> last step
        self._episodes: dict[tuple[str, str], int] = {}

    def catch_up(self, history: Sequence[Mapping[str, Any]]) -> tuple[Alarm, ...]:
        """The alarms of the newest line; lines before it are read where they have not been.

        Args:
            history: transformers' ``log_history``, from the run's first line on.
        """
        new: tuple[Alarm, ...] = ()
        for entry in history[self._read :]:
            new = self.observe(entry)
        self._read = len(history)
        return new

    def observe(self, entry: Mapping[str, Any]) -> tuple[Alarm, ...]:
        """The alarms that begin with a line.

        Args:
            entry: a log line or an evaluation, with its "step"; anything else is passed over.
        """
        if entry.keys() >= {"loss", MARGIN, NLL, ACCURACY}:
            held = [
                alarm
                for name, point in of_constraints.points_of(entry).items()
                for alarm in self._begun(f"constraint {name}", self._of_point(name, point))
            ]
            return (*self._begun("", self._of_line(entry)), *held)
        found = next((match for key in entry if (match := _EVALUATION.fullmatch(key))), None)
        if found is None or found[0].removesuffix(ACCURACY) + NLL not in entry:
            return ()
        name = found["name"] or "eval"
        held_out = [
            alarm
            for held, violation in of_constraints.held_out_of(
                entry, found[0].removesuffix(ACCURACY)
            ).items()
            for alarm in self._begun(
                f"{name}, constraint {held}",
                self._of_held_out(held, violation, name, int(entry["step"])),
            )
        ]
        return (*self._begun(name, self._of_evaluation(entry, name, found[0])), *held_out)

    def _of_line(self, entry: Mapping[str, Any]) -> Iterable[Alarm | None]:
        step, facts = int(entry["step"]), self._facts
        skipped = int(entry.get("skipped_steps", 0))  # since the run began
        new = max(0, skipped - self._skipped)
        pairs = facts.step_pairs * max(1, step - self._step - new)
        self._step, self._skipped = step, skipped
        values = {name: float(entry[name]) for name in CURVES if name in entry}
        loss, norm, margin, nll = (self._curves[name] for name in CURVES)
        yield of_curves.loss_spike(loss, values["loss"], facts, step)
        if "grad_norm" in values:
            yield of_curves.gradient_spike(norm, values["grad_norm"], facts, step)
        for name, value in values.items():
            if math.isfinite(value):
                self._curves[name].add(step, value)
        yield self._of_share(PooledShare(step, float(entry[ACCURACY]) * pairs, pairs))
        if nll.known and margin.known:  # an NLL without end is no line of its curve
            yield of_curves.displacement(nll, margin, facts, step)
            yield of_curves.lost_margin(margin, facts, step)
            yield of_curves.divergence(loss, facts, step)

    def _of_point(self, name: str, point: Point) -> Iterable[Alarm | None]:
        points, steps = self._constraints.setdefault(name, []), self._facts.steps
        before = points[-1].step if points else 0
        points.append(point)
        yield of_constraints.oscillation(points, name)
        if is_last(point.step, before, steps):
            yield of_constraints.slack(points, name, steps)
            yield of_constraints.not_held(points, name, steps)

    def _of_held_out(
        self, held: str, violation: float, where: str, step: int
    ) -> Iterable[Alarm | None]:
        steps, before = self._facts.steps, self._held_out.get((held, where), 0)
        self._held_out[held, where] = step
        if is_last(step, before, steps):
            points = self._constraints.get(held, [])
            yield of_constraints.not_held_out(points, violation, held, where, steps)

    def _of_share(self, share: PooledShare) -> Alarm | None:
        if len(self._first) < LEVEL:
            self._first.append(share)
            return None
        self._recent.append(share)
        working = [one for one in self._recent if one.step > self._facts.warmup_steps]
        look = self._curves["loss"].count
        return of_curves.below_chance(pooled(self._first), working, look, share.step)

    def _of_evaluation(
        self, entry: Mapping[str, Any], name: str, key: str
    ) -> Iterable[Alarm | None]:
        prefix = key.removesuffix(ACCURACY)
        # which is how transformers came by the speed
        speed = entry.get(f"{prefix}samples_per_second", 0)
        pairs = round(entry.get(f"{prefix}runtime", 0) * speed)
        if not pairs:
            return
        share = PooledShare(int(entry["step"]), float(entry[key]) * pairs, pairs)
        seen = self._evaluations.setdefault(name, [])
        seen.append((share, float(entry[f"{prefix}{NLL}"])))
        shares = [share for share, _ in seen]
        yield of_curves.disagreement(list(self._recent), shares, name)
        nll = [(share.step, value) for share, value in seen]
        yield of_curves.held_out_nll(nll, name, self._facts)

    def _begun(self, where: str, found: Iterable[Alarm | None]) -> tuple[Alarm, ...]:
        """Those alarms that do not last from before."""
        now = {alarm.code: alarm for alarm in found if alarm is not None}
        new = tuple(alarm for code, alarm in now.items() if (where, code) not in self._episodes)
        for key in [key for key in self._episodes if key[0] == where]:
            self._episodes[key] += 1
            if self._episodes[key] >= REST:
                del self._episodes[key]
        self._episodes |= {(where, code): 0 for code in now}
        return new
