"""One constraint of a run with its multiplier: a bound, a state, and what a log line says of them.

Plain numbers throughout. Not here: how a multiplier moves (``losses.multiplier``), and where the
values come from (``constraint_set``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from counterpoint.constraints import Constraint
from counterpoint.losses.multiplier import MultiplierRule, MultiplierState, rule_of
from counterpoint.runlog import Alarm, constraint_metric

PATIENCE = 0.05
"""Share of a run's steps, at the cap and above the bound, after which a bound is infeasible."""

LEAST_PATIENCE = 10
"""The fewest such steps: a few in a row may come by chance."""


@dataclass(slots=True)
class Window:
    """What a constraint's log line is made of: the applied steps since the last one.

    Args:
        numerator: of the value, summed.
        denominator: likewise.
        steps: that counted.
        feasible: of them, those at or below the bound.
        at_cap: of them, those whose multiplier was at its cap.
    """

    numerator: float = 0.0
    denominator: float = 0.0
    steps: int = 0
    feasible: int = 0
    at_cap: int = 0


class Multiplied:
    """One constraint of a run, with its multiplier.

    Args:
        asked: the constraint.
        start: multiplier of the first step.
    """

    def __init__(self, asked: Constraint, start: float) -> None:
        self.asked, self.start = asked, float(min(start, asked.cap))
        self.bound = asked.bound
        self.initial: float | None = None
        self.window = Window()
        self.infeasible_for = 0
        self.reported = False
        self.plan(1)
        self.state: MultiplierState = self.rule.start(self.start)
        self.weight = self.state.value
        """What multiplies the constraint in the running step."""

    def plan(self, steps: int) -> None:
        """Scale the rule to a run of so many steps."""
        asked = self.asked
        self.patience = max(LEAST_PATIENCE, math.ceil(PATIENCE * steps))
        self.rule: MultiplierRule = rule_of(
            asked.update,
            rate=float(asked.rate),
            proportional=float(asked.proportional),
            derivative=float(asked.derivative),
            nu=float(asked.nu),
            smoothing=float(asked.smoothing),
            cap=float(asked.cap),
            steps=steps,
        )

    def calibrate(self, value: float) -> None:
        """Take what the initial policy's value is, which a relative bound is a share of."""
        self.initial = value
        if self.asked.slack is not None:
            self.bound = value * (1 + self.asked.slack)

    def violation(self, numerator: float, denominator: float) -> float | None:
        """How far the value is above the bound; None where nothing was counted."""
        if self.bound is None or not denominator > 0:
            return None
        return numerator / denominator - self.bound

    def close(self, numerator: float, denominator: float) -> bool:
        """One applied step.

        Returns:
            Whether the bound has just turned out to be infeasible.
        """
        violation = self.violation(numerator, denominator)
        if violation is None or not math.isfinite(violation):
            return False
        at_cap = self.weight >= self.asked.cap
        window = self.window
        window.numerator += numerator
        window.denominator += denominator
        window.steps += 1
        window.feasible += violation <= 0
        window.at_cap += at_cap
        self.state = self.rule.step(self.state, violation)
        self.infeasible_for = self.infeasible_for + 1 if at_cap and violation > 0 else 0
        if self.infeasible_for < self.patience or self.reported:
            return False
        self.reported = True
        return True

    def metrics(self) -> dict[str, float]:
        """Of the steps since the last call; then starts anew."""
        window, self.window = self.window, Window()
        found = {"multiplier": self.state.value}
        if self.bound is not None:
            found["bound"] = self.bound
        if window.steps:
            value = window.numerator / window.denominator
            found |= {
                "value": value,
                "violation": value - found["bound"],
                "feasible": window.feasible / window.steps,
                "at_cap": window.at_cap / window.steps,
            }
        if self.state.smoothed is not None:
            found["smoothed"] = self.state.smoothed
        return {constraint_metric(self.asked.name, key): x for key, x in found.items()}

    def facts(self) -> dict[str, Any]:
        """For ``run.json``."""
        asked = self.asked
        return {
            "name": asked.name,
            "kind": asked.kind,
            "bound": self.bound,
            "slack": asked.slack,
            "initial": self.initial,
            "update": asked.update,
            "rate": asked.rate,
            "cap": asked.cap,
            "start": self.start,
        }

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "bound": self.bound,
            "initial": self.initial,
            "multiplier": asdict(self.state),
            "window": asdict(self.window),
            "infeasible_for": self.infeasible_for,
            "reported": self.reported,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint's."""
        self.bound, self.initial = state["bound"], state["initial"]
        self.state = MultiplierState(**state["multiplier"])
        self.window = Window(**state["window"])
        self.infeasible_for, self.reported = state["infeasible_for"], state["reported"]

    def formula(self) -> str:
        """The constraint as a line under the objective's formula."""
        asked = self.asked
        if self.bound is not None:
            bound = f"{self.bound:.4g}"
        else:
            bound = f"{1 + (asked.slack or 0.0):g} x that of the initial policy"
        return (
            f"subject to {asked.name} <= {bound} ({asked.update}, multiplier from {self.start:g})"
        )

    def infeasible(self, step: int) -> Alarm:
        """The alarm of a bound that no policy within reach holds.

        Args:
            step: at which that turned out.
        """
        since = max(1, step - self.patience + 1)
        return Alarm(
            "CW441",
            step,
            since,
            f"the multiplier of {self.asked.name} has been at its cap of {self.asked.cap:g} for "
            f"{self.patience} steps, and the value is {self.state.smoothed or 0.0:.3g} above the "
            f"bound of {self.bound:.4g}: no policy within reach holds it.",
        )
