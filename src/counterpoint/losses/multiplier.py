"""How the multiplier λ of a constraint moves: four rules of dual update, in plain floats.

    minimise f subject to g <= 0:   the loss of a step is f + weight x g, weight >= 0,
    and after the step λ rises where g was above 0 and falls where it was below.

g is the violation (value minus bound) in the constraint's own unit; λ is in nats of loss per
unit of violation; time is counted in applied optimizer steps. Each rule reads the violation
measured by the step that was just applied, and what it returns holds for the whole next step.

Every rule keeps ``smoothed``, the moving average of the violation that reports show. It starts
at the first violation, so no bias towards 0 has to be undone. Who reads what:

    dual ascent            raw violation
    pid                    integral: raw violation; proportional and derivative: smoothed
    nu_pi                  integral: raw violation; proportional: its own average with factor nu
    augmented_lagrangian   raw violation, both after the step and at the step's weights

Not here: how a violation is measured, nor when a step counts as applied (the trainer).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from counterpoint.constraints import UPDATES


@dataclass(frozen=True, slots=True)
class MultiplierState:
    """All that a rule remembers between steps; every field survives JSON to the bit.

    Args:
        value: λ of the whole next step, in [0, cap].
        integral: the part of λ that the violations have added up to, in [0, cap]; equal to
            ``value`` except under PID.
        smoothed: moving average of the violation; None before the first step.
        previous: what the next difference is taken to: under PID the last ``smoothed``, under
            nuPI the last ξ; None before the first step and under the other rules.
        steps: how many violations have been taken in.
    """

    value: float
    integral: float
    smoothed: float | None
    previous: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class Gains:
    """What a rule may be made of, scaled to the length of a run; see ``rule_of``.

    Args:
        per_step: rise of λ per step and unit of violation.
        at_once: part of λ per unit of the violation at hand.
        of_rise: part of λ per unit by which the violation rises in a step.
        nu: factor in [0, 1) of nuPI's own average.
        smoothing: factor in [0, 1) of the average that pid and reports read.
        cap: the largest λ.
    """

    per_step: float
    at_once: float
    of_rise: float
    nu: float
    smoothing: float
    cap: float


class MultiplierRule(ABC):
    """A rule of dual update: a pure function from state and violation to the next state."""

    __slots__ = ()

    cap: float
    measures_first: ClassVar[bool] = False
    """Whether ``weight`` wants the violation at the step's own weights, before its backward."""

    @classmethod
    @abstractmethod
    def of(cls, gains: Gains) -> MultiplierRule:
        """The rule of a run."""

    def start(self, value: float) -> MultiplierState:
        """The state before the first step; λ stays there for as long as the violation is 0.

        Args:
            value: λ₀ in [0, cap].

        Raises:
            ValueError: λ₀ is outside [0, cap] or not a number.
        """
        if not 0 <= value <= self.cap:
            raise ValueError(f"λ₀ is {value}; expected a number from 0 to the cap, {self.cap}")
        return MultiplierState(float(value), float(value), smoothed=None, previous=None, steps=0)

    @abstractmethod
    def step(self, state: MultiplierState, violation: float) -> MultiplierState:
        """The state after one applied optimizer step.

        Args:
            state: what the step was taken with.
            violation: of that step, value minus bound; one that is not finite changes nothing.
        """

    def weight(self, state: MultiplierState, violation: float | None) -> float:
        """What multiplies the constraint's gradient in the next step, in [0, cap]; by default λ.

        Args:
            state: after the step before.
            violation: at the next step's weights, where ``measures_first``; else not read.
        """
        return state.value


@dataclass(frozen=True, slots=True)
class DualAscent(MultiplierRule):
    """Projected dual ascent: λ <- clip(λ + rate g, 0, cap), the method of Arrow, Hurwicz, Uzawa.

    Args:
        rate: rise of λ per step and unit of violation, at least 0.
        smoothing: factor in [0, 1) of the average that reports read; λ does not read it.
        cap: the largest λ, at least 0.

    Raises:
        ValueError: a number is out of its range.
    """

    rate: float
    smoothing: float
    cap: float

    def __post_init__(self) -> None:
        """Refuse a number out of its range."""
        _check(self.smoothing, self.cap, rate=self.rate)

    @classmethod
    def of(cls, gains: Gains) -> MultiplierRule:
        """The rule of a run."""
        return cls(gains.per_step, gains.smoothing, gains.cap)

    def step(self, state: MultiplierState, violation: float) -> MultiplierState:
        """See ``MultiplierRule.step``."""
        return _ascend(state, violation, self.rate, self.smoothing, self.cap)


@dataclass(frozen=True, slots=True)
class PID(MultiplierRule):
    """PID control of λ in positional form (Stooke, Achiam, Abbeel 2020, arXiv:2007.03964).

    I <- clip(I + integral g, 0, cap)
    λ <- clip(I + proportional s + derivative max(0, s - s of the step before), 0, cap)

    s is the smoothed violation. Only a violation that grows is answered by the derivative. I
    starts at λ₀ and is clipped on its own, so it cannot wind up beyond what λ may become.

    Args:
        integral: rise of I per step and unit of violation, at least 0.
        proportional: part of λ per unit of smoothed violation, at least 0.
        derivative: part of λ per unit by which the smoothed violation rises in a step, at
            least 0.
        smoothing: factor in [0, 1) of the average that the last two terms and reports read.
        cap: the largest λ, at least 0.

    Raises:
        ValueError: a number is out of its range.
    """

    integral: float
    proportional: float
    derivative: float
    smoothing: float
    cap: float

    def __post_init__(self) -> None:
        """Refuse a number out of its range."""
        _check(
            self.smoothing,
            self.cap,
            integral=self.integral,
            proportional=self.proportional,
            derivative=self.derivative,
        )

    @classmethod
    def of(cls, gains: Gains) -> MultiplierRule:
        """The rule of a run."""
        return cls(gains.per_step, gains.at_once, gains.of_rise, gains.smoothing, gains.cap)

    def step(self, state: MultiplierState, violation: float) -> MultiplierState:
        """See ``MultiplierRule.step``."""
        if not math.isfinite(violation):
            return state
        smoothed = _average(state.smoothed, violation, self.smoothing)
        integral = _clip(state.integral + self.integral * violation, self.cap)
        # nothing to differ from on the first step
        rise = 0.0 if state.previous is None else max(0.0, smoothed - state.previous)
        value = integral + self.proportional * smoothed + self.derivative * rise
        return MultiplierState(
            _clip(value, self.cap), integral, smoothed, smoothed, state.steps + 1
        )


@dataclass(frozen=True, slots=True)
class NuPI(MultiplierRule):
    """nuPI control of λ in recursive form (Sohrabi et al. 2024, arXiv:2406.04558).

    ξ <- nu ξ + (1 - nu) g
    λ <- clip(λ + rate g + proportional (ξ - ξ of the step before), 0, cap)

    ξ starts at the first violation, so the first step is one of dual ascent. What is added to
    is the clipped λ, so nothing winds up. proportional = rate and nu = 0 is the optimistic
    gradient method.

    Args:
        rate: rise of λ per step and unit of violation, at least 0.
        proportional: rise of λ per unit by which ξ rises in a step, at least 0.
        nu: factor of ξ in [0, 1). The paper allows values down to -1, which act like momentum
            and feed the oscillation that the rule is there to damp.
        smoothing: factor in [0, 1) of the average that reports read; λ does not read it.
        cap: the largest λ, at least 0.

    Raises:
        ValueError: a number is out of its range.
    """

    rate: float
    proportional: float
    nu: float
    smoothing: float
    cap: float

    def __post_init__(self) -> None:
        """Refuse a number out of its range."""
        _check(self.smoothing, self.cap, rate=self.rate, proportional=self.proportional)
        if not 0 <= self.nu < 1:
            raise ValueError(f"nu is {self.nu}; expected a number in [0, 1)")

    @classmethod
    def of(cls, gains: Gains) -> MultiplierRule:
        """The rule of a run."""
        return cls(gains.per_step, gains.at_once, gains.nu, gains.smoothing, gains.cap)

    def step(self, state: MultiplierState, violation: float) -> MultiplierState:
        """See ``MultiplierRule.step``."""
        if not math.isfinite(violation):
            return state
        xi = _average(state.previous, violation, self.nu)
        change = 0.0 if state.previous is None else xi - state.previous
        value = state.value + self.rate * violation + self.proportional * change
        value = _clip(value, self.cap)
        smoothed = _average(state.smoothed, violation, self.smoothing)
        return MultiplierState(value, value, smoothed, xi, state.steps + 1)


@dataclass(frozen=True, slots=True)
class AugmentedLagrangian(MultiplierRule):
    """Augmented Lagrangian of an inequality (Rockafellar 1973; Nocedal and Wright, 17.4).

    The loss gets (max(0, λ + penalty g)² - λ²) / (2 penalty), whose gradient is
    max(0, λ + penalty g) times that of g; after the step λ <- clip(λ + rate g, 0, cap).
    The classical method is rate = penalty with many steps to an update; with one step to an
    update, a rate below the penalty leaves λ smooth and lets the penalty damp.

    Args:
        rate: rise of λ per step and unit of violation, at least 0.
        penalty: ρ, rise of the weight per unit of the step's own violation, at least 0; 0 is
            dual ascent.
        smoothing: factor in [0, 1) of the average that reports read; λ does not read it.
        cap: the largest λ and the largest weight, at least 0.

    Raises:
        ValueError: a number is out of its range.
    """

    rate: float
    penalty: float
    smoothing: float
    cap: float
    measures_first: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a number out of its range."""
        _check(self.smoothing, self.cap, rate=self.rate, penalty=self.penalty)

    @classmethod
    def of(cls, gains: Gains) -> MultiplierRule:
        """The rule of a run."""
        return cls(gains.per_step, gains.at_once, gains.smoothing, gains.cap)

    def step(self, state: MultiplierState, violation: float) -> MultiplierState:
        """See ``MultiplierRule.step``."""
        return _ascend(state, violation, self.rate, self.smoothing, self.cap)

    def weight(self, state: MultiplierState, violation: float | None) -> float:
        """λ + ρ g between 0 and the cap; λ itself where the violation is None or not finite."""
        if violation is None or not math.isfinite(violation):
            return state.value
        return _clip(state.value + self.penalty * violation, self.cap)


def rule_of(
    update: str,
    *,
    rate: float,
    proportional: float,
    derivative: float,
    nu: float,
    smoothing: float,
    cap: float,
    steps: int,
) -> MultiplierRule:
    """The rule of that name with its gains scaled to the length of the run.

    Time is counted in runs, so that a run of half the length traces the same curve of λ in
    half the steps: a sum over steps is divided by their number, a difference between two steps
    multiplied by it. The averages (``smoothing``, ``nu``) stay per step: they are there
    against the noise of single steps, which a shorter run does not change.

    Args:
        update: a key of ``constraints.UPDATES``.
        rate: rise of λ if a violation of 1 lasts the whole run, at least 0; 0 freezes λ at λ₀.
        proportional: weight of the violation itself beside its sum, as a share of the run, at
            least 0; of all but dual ascent.
        derivative: weight of its rise, in shares of the run squared, at least 0; of pid.
        nu: factor in [0, 1) of nuPI's own average.
        smoothing: factor in [0, 1) of the average that pid and reports read.
        cap: the largest λ, at least 0.
        steps: optimizer steps of the run, at least 1.

    Raises:
        ValueError: the name is unknown or a number is out of its range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if update not in UPDATES:
        raise ValueError(f"no rule of dual update is called {update!r}")
    gains = Gains(rate / steps, rate * proportional, rate * derivative * steps, nu, smoothing, cap)
    return _RULES[UPDATES[update]].of(gains)


_RULES: Mapping[str, type[MultiplierRule]] = {
    rule.__name__: rule for rule in (DualAscent, PID, NuPI, AugmentedLagrangian)
}
"""Name, as ``constraints.UPDATES`` has it -> the rule."""


def _ascend(
    state: MultiplierState, violation: float, rate: float, smoothing: float, cap: float
) -> MultiplierState:
    if not math.isfinite(violation):
        return state
    value = _clip(state.value + rate * violation, cap)
    smoothed = _average(state.smoothed, violation, smoothing)
    return replace(state, value=value, integral=value, smoothed=smoothed, steps=state.steps + 1)


def _average(average: float | None, violation: float, factor: float) -> float:
    return violation if average is None else factor * average + (1 - factor) * violation


def _clip(value: float, cap: float) -> float:
    return min(cap, max(0.0, value))


def _check(smoothing: float, cap: float, **gains: float) -> None:
    for name, gain in {**gains, "cap": cap}.items():
        if not 0 <= gain < math.inf:
            raise ValueError(f"{name} is {gain}; expected a finite number of at least 0")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; expected a number in [0, 1)")
