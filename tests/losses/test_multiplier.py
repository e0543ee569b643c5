"""The multiplier's rules: literal values, laws of the state, known optima, and an oracle.

The oracle is cooper-optim 1.0.1, whose simultaneous optimizer has our order: the violation that
moves λ is the one at the weights the step started from. It has no cap, no smoothing beside
nuPI's own, and no PID controller; those are held by the other tests.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.losses.multiplier import (
    PID,
    AugmentedLagrangian,
    DualAscent,
    MultiplierRule,
    MultiplierState,
    NuPI,
    rule_of,
)

CAP = 5.0
RULES = {
    "dual_ascent": DualAscent(rate=0.1, smoothing=0.5, cap=CAP),
    "pid": PID(integral=0.1, proportional=0.5, derivative=0.2, smoothing=0.5, cap=CAP),
    "nu_pi": NuPI(rate=0.1, proportional=0.5, nu=0.5, smoothing=0.5, cap=CAP),
    "augmented_lagrangian": AugmentedLagrangian(rate=0.1, penalty=0.5, smoothing=0.5, cap=CAP),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
violations = st.lists(st.floats(-1e6, 1e6), max_size=30)
starts = st.floats(0, CAP)
# rounding of a few dozen steps, about ten operations each, at a scale of ten, where no step
# enlarges an error: 60 x 10 x 10 x 2^-53
ROUNDING = 60 * 10 * 10 * 2.0**-53


def run(rule: MultiplierRule, state: MultiplierState, taken: list[float]) -> MultiplierState:
    for violation in taken:
        state = rule.step(state, violation)
    return state


def values(rule: MultiplierRule, start: float, taken: list[float]) -> list[float]:
    state, seen = rule.start(start), []
    for violation in taken:
        state = rule.step(state, violation)
        seen.append(state.value)
    return seen


def test_dual_ascent_adds_rate_times_violation_and_stops_at_zero_and_the_cap():
    rule = DualAscent(rate=0.5, smoothing=0.0, cap=3.0)
    assert values(rule, 1.0, [1.0, -4.0, 2.0, 8.0, -1.0]) == [1.5, 0.0, 1.0, 3.0, 2.5]


def test_pid_by_hand():
    rule = PID(integral=0.5, proportional=2.0, derivative=4.0, smoothing=0.5, cap=100.0)
    # smoothed 1, 2, 0.5; integral 1.5, 3, 2.5; rise 0, 1, and none where it falls
    assert values(rule, 1.0, [1.0, 3.0, -1.0]) == [
        1.5 + 2.0,
        3.0 + 4.0 + 4.0,
        2.5 + 1.0,
    ]


def test_nu_pi_by_hand():
    rule = NuPI(rate=0.5, proportional=2.0, nu=0.5, smoothing=0.0, cap=100.0)
    # the average xi is 1, 2, 0.5
    assert values(rule, 1.0, [1.0, 3.0, -1.0]) == [
        1.0 + 0.5,
        1.5 + 1.5 + 2.0,
        5.0 - 0.5 - 3.0,
    ]


def test_the_augmented_lagrangian_weighs_with_the_steps_own_violation():
    rule = AugmentedLagrangian(rate=0.5, penalty=2.0, smoothing=0.0, cap=4.0)
    state = rule.start(1.0)
    assert [rule.weight(state, g) for g in (0.0, 1.0, -0.25, -1.0, 9.0)] == [1, 3, 0.5, 0, 4]
    assert rule.weight(state, None) == rule.weight(state, math.nan) == 1.0
    assert rule.step(state, 1.0).value == 1.5


def test_only_the_augmented_lagrangian_asks_for_the_violation_first():
    asking = {name for name, rule in RULES.items() if rule.measures_first}
    assert asking == {"augmented_lagrangian"}
    for name in RULES.keys() - asking:
        assert RULES[name].weight(RULES[name].start(2.0), 1e9) == 2.0


@every_rule
def test_the_smoothed_violation_is_an_average_that_starts_at_the_first(rule: MultiplierRule):
    state = rule.start(1.0)
    assert state.smoothed is None
    seen = []
    for violation in (4.0, 2.0, -1.0):
        state = rule.step(state, violation)
        seen.append(state.smoothed)
    assert seen == [4.0, 3.0, 1.0]
    assert state.steps == 3


@every_rule
@given(start=starts, taken=violations)
def test_the_multiplier_and_the_weight_stay_between_zero_and_the_cap(
    rule: MultiplierRule, start: float, taken: list[float]
):
    state = rule.start(start)
    for violation in taken:
        assert 0 <= rule.weight(state, violation) <= CAP
        state = rule.step(state, violation)
        assert 0 <= state.value <= CAP
        assert 0 <= state.integral <= CAP


@every_rule
@given(start=starts, taken=violations, one=st.floats(-1e6, 1e6), other=st.floats(-1e6, 1e6))
def test_a_larger_violation_never_lowers_the_multiplier(
    rule: MultiplierRule, start: float, taken: list[float], one: float, other: float
):
    state = run(rule, rule.start(start), taken)
    low, high = min(one, other), max(one, other)
    assert rule.step(state, low).value <= rule.step(state, high).value
    assert rule.weight(state, low) <= rule.weight(state, high)


@every_rule
@given(start=starts, taken=violations, cut=st.integers(0, 30))
def test_a_run_cut_in_two_and_resumed_from_json_equals_the_unbroken_one(
    rule: MultiplierRule, start: float, taken: list[float], cut: int
):
    first = run(rule, rule.start(start), taken[:cut])
    resumed = MultiplierState(**json.loads(json.dumps(asdict(first))))
    assert resumed == first
    assert run(rule, resumed, taken[cut:]) == run(rule, rule.start(start), taken)


@every_rule
@pytest.mark.parametrize("violation", [math.nan, math.inf, -math.inf])
def test_a_violation_that_is_not_finite_changes_nothing(rule: MultiplierRule, violation: float):
    for state in (rule.start(1.0), run(rule, rule.start(1.0), [0.3, -0.1])):
        assert rule.step(state, violation) == state
        assert rule.weight(state, violation) == state.value


@every_rule
@given(start=starts, steps=st.integers(1, 20))
def test_a_violation_of_zero_keeps_the_start(rule: MultiplierRule, start: float, steps: int):
    state = run(rule, rule.start(start), [0.0] * steps)
    assert state.value == rule.weight(state, 0.0) == start


@pytest.mark.parametrize("update", RULES)
@given(start=starts, taken=violations)
def test_a_rate_of_zero_freezes_the_multiplier_to_the_bit(
    update: str, start: float, taken: list[float]
):
    rule = scaled(update, steps=100, rate=0.0)
    state = rule.start(start)
    for violation in taken:
        assert rule.weight(state, violation) == start
        state = rule.step(state, violation)
        assert state.value == start


@every_rule
def test_it_does_not_wind_up_beyond_the_cap(rule: MultiplierRule):
    # however long the violation lasted, the way down from the cap is the same
    short, long = (run(rule, rule.start(CAP), [3.0] * steps) for steps in (30, 3000))
    assert short.value == long.value == CAP
    down = [-3.0] * 5
    for at_cap in (short, long):
        assert run(rule, at_cap, down).value < CAP
    assert run(rule, short, down).value == pytest.approx(run(rule, long, down).value, rel=1e-8)


def scaled(update: str, *, steps: int, rate: float = 2.0, smoothing: float = 0.9) -> MultiplierRule:
    return rule_of(
        update,
        rate=rate,
        proportional=0.1,
        derivative=0.01,
        nu=0.9,
        smoothing=smoothing,
        cap=CAP,
        steps=steps,
    )


def test_the_gains_count_time_in_runs():
    assert scaled("dual_ascent", steps=50) == DualAscent(0.04, 0.9, CAP)
    assert scaled("pid", steps=50) == PID(0.04, 0.2, 1.0, 0.9, CAP)
    assert scaled("nu_pi", steps=50) == NuPI(0.04, 0.2, 0.9, 0.9, CAP)
    assert scaled("augmented_lagrangian", steps=50) == AugmentedLagrangian(0.04, 0.2, 0.9, CAP)


@pytest.mark.parametrize("update", RULES)
def test_twice_the_steps_end_at_the_same_multiplier_under_a_constant_violation(update: str):
    short, long = scaled(update, steps=32), scaled(update, steps=64)
    for part in (8, 16, 32):
        at = run(short, short.start(0.5), [0.25] * part)
        after = run(long, long.start(0.5), [0.25] * 2 * part)
        assert after.value == pytest.approx(at.value, abs=ROUNDING)
        assert at.value > 0.5
        assert long.weight(after, 0.25) == pytest.approx(short.weight(at, 0.25), abs=ROUNDING)


def test_the_derivative_of_a_steady_rise_does_not_depend_on_the_number_of_steps():
    def end(steps: int) -> float:
        with_, without = scaled("pid", steps=steps, smoothing=0.0), None
        without = PID(with_.integral, with_.proportional, 0.0, 0.0, CAP)
        rise = [0.5 * step / steps for step in range(1, steps + 1)]
        return values(with_, 0.0, rise)[-1] - values(without, 0.0, rise)[-1]

    # rate 2, derivative 0.01, half a unit a run
    assert end(20) == pytest.approx(0.01, abs=ROUNDING)
    assert end(40) == pytest.approx(0.01, abs=ROUNDING)


def closed_loop(
    rule: MultiplierRule, steps: int, *, x: float, start: float, slope, step_size: float
) -> tuple[list[float], list[float]]:
    """Gradient steps on f(x) + weight (x - 1), λ moved by the violation the step was taken at."""
    state, xs, multipliers = rule.start(start), [], []
    for _ in range(steps):
        violation = x - 1
        x -= step_size * (slope(x) + rule.weight(state, violation))
        state = rule.step(state, violation)
        xs.append(x)
        multipliers.append(state.value)
    return xs, multipliers


def parabola(x: float) -> float:
    """Slope of (x - 2)²."""
    return 2 * (x - 2)


@every_rule
@pytest.mark.parametrize("start", [0.0, 1.0, 4.5])
def test_each_rule_finds_the_multiplier_of_a_convex_problem(rule: MultiplierRule, start: float):
    # min (x - 2)² subject to x <= 1: 2 (x - 2) + λ = 0 at x = 1. The slowest of the four maps
    # shrinks an error to 0.952 of it a step: 0.952^800 < 1e-17, so rounding is what is left.
    xs, multipliers = closed_loop(rule, 800, x=0.0, start=start, slope=parabola, step_size=0.1)
    assert xs[-1] == pytest.approx(1.0, abs=ROUNDING)
    assert multipliers[-1] == pytest.approx(2.0, abs=ROUNDING)


@every_rule
def test_a_constraint_that_does_not_bind_ends_at_zero(rule: MultiplierRule):
    # the optimum of (x + 1)² is far below the bound
    xs, multipliers = closed_loop(
        rule, 400, x=0.0, start=2.0, slope=lambda x: 2 * (x + 1), step_size=0.1
    )
    assert multipliers[-1] == 0.0
    assert xs[-1] == pytest.approx(-1.0, abs=ROUNDING)


def test_the_proportional_term_damps_what_dual_ascent_lets_swing():
    # min -x subject to x <= 1, λ = 1 at the optimum: x and λ integrate each other, so nothing
    # but the rule can damp. Dual ascent: the eigenvalues of a step are 1 ± i sqrt(rate x step
    # size), outside the unit circle. A proportional term of 2 sqrt(rate / step size) is critical.
    rate = step_size = 0.1

    def swing(rule: MultiplierRule) -> tuple[float, float]:
        _, multipliers = closed_loop(
            rule, 200, x=1.0, start=0.5, slope=lambda x: -1.0, step_size=step_size
        )
        off = [abs(value - 1) for value in multipliers]
        return max(off[:100]), max(off[-50:])

    first, last = swing(DualAscent(rate, 0.0, 100.0))
    assert last > first
    for rule in (
        PID(rate, 2.0, 0.0, 0.0, 100.0),
        NuPI(rate, 2.0, 0.0, 0.0, 100.0),
        AugmentedLagrangian(rate, 2.0, 0.0, 100.0),
    ):
        first, last = swing(rule)
        assert last < 1e-3 * first


@pytest.mark.parametrize(
    "broken",
    [
        lambda: DualAscent(-0.1, 0.0, 1.0),
        lambda: DualAscent(math.nan, 0.0, 1.0),
        lambda: DualAscent(0.1, 1.0, 1.0),
        lambda: DualAscent(0.1, 0.0, math.inf),
        lambda: PID(0.1, math.inf, 0.0, 0.0, 1.0),
        lambda: NuPI(0.1, 0.1, 1.0, 0.0, 1.0),
        lambda: AugmentedLagrangian(0.1, -1.0, 0.0, 1.0),
        lambda: RULES["pid"].start(CAP + 1),
        lambda: RULES["pid"].start(math.nan),
        lambda: scaled("dual_ascent", steps=0),
        lambda: scaled("gradient_descent", steps=1),
    ],
)
def test_what_is_out_of_range_is_refused(broken):
    with pytest.raises(ValueError, match=r"expected|is called"):
        broken()


# --- the oracle ---


def coopers(
    *, start: float, x: float, dual, penalty: float | None = None, steps: int = 60, second=None
) -> tuple[list[float], list[float]]:
    """The parabola's problem solved by cooper's own constraint, multiplier and optimizer."""
    cooper = pytest.importorskip("cooper", reason="cooper-optim, the oracle, is not installed")
    f64 = {"dtype": torch.float64}
    weight = torch.nn.Parameter(torch.tensor([x], **f64))
    multiplier = cooper.multipliers.DenseMultiplier(init=torch.tensor([start], **f64), **f64)

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            plain = cooper.formulations.Lagrangian
            augmented = cooper.formulations.AugmentedLagrangian
            self.bound = cooper.Constraint(
                constraint_type=cooper.ConstraintType.INEQUALITY,
                formulation_type=plain if penalty is None else augmented,
                multiplier=multiplier,
                penalty_coefficient=None
                if penalty is None
                else cooper.penalty_coefficients.DensePenaltyCoefficient(
                    init=torch.tensor([penalty], **f64)
                ),
            )

        def compute_cmp_state(self):
            observed = {self.bound: cooper.ConstraintState(violation=weight - 1)}
            return cooper.CMPState(loss=((weight - 2) ** 2).sum(), observed_constraints=observed)

    dual_optimizer = dual(cooper, multiplier.parameters())
    optimizer = cooper.optim.SimultaneousOptimizer(
        cmp=Problem(),
        primal_optimizers=torch.optim.SGD([weight], lr=0.1),
        dual_optimizers=dual_optimizer,
    )
    xs, multipliers = [], []
    for step in range(steps):
        if step == 1 and second is not None:
            second(dual_optimizer.state[multiplier.weight])
        optimizer.roll()
        xs.append(weight.item())
        multipliers.append(multiplier.weight.item())
    return xs, multipliers


def cooper_sgd(cooper, parameters):
    return torch.optim.SGD(parameters, lr=0.3, maximize=True)


def cooper_nu_pi(scheme: str, nu: float):
    def dual(cooper, parameters):
        return cooper.optim.nuPI(
            parameters,
            lr=1.0,
            Kp=torch.tensor([0.8], dtype=torch.float64),
            Ki=torch.tensor([0.3], dtype=torch.float64),
            ema_nu=nu,
            init_type=cooper.optim.nuPIInitType[scheme],
            maximize=True,
        )

    return dual


def agree(ours: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=ROUNDING)
    assert ours[1] == pytest.approx(theirs[1], abs=ROUNDING)


# far below the bound λ is projected to zero for a while; above it is never
where = pytest.mark.parametrize(("x", "start"), [(-3.0, 0.5), (3.0, 1.0)])


def ours(rule: MultiplierRule, x: float, start: float) -> tuple[list[float], list[float]]:
    return closed_loop(rule, 60, x=x, start=start, slope=parabola, step_size=0.1)


@where
def test_dual_ascent_is_coopers(x: float, start: float):
    theirs = coopers(start=start, x=x, dual=cooper_sgd)
    agree(ours(DualAscent(0.3, 0.0, 100.0), x, start), theirs)
    assert (0.0 in theirs[1]) == (x < 1)


@where
def test_the_augmented_lagrangian_is_coopers(x: float, start: float):
    theirs = coopers(start=start, x=x, dual=cooper_sgd, penalty=2.0)
    agree(ours(AugmentedLagrangian(0.3, 2.0, 0.0, 100.0), x, start), theirs)


@where
@pytest.mark.parametrize("nu", [0.0, 0.9])
def test_nu_pi_is_coopers_with_its_average_started_at_the_first_violation(
    x: float, start: float, nu: float
):
    # Its documentation says that xi starts there; its code starts it at 0 after the first step.
    def as_documented(state: dict) -> None:
        assert state["xi"].item() == 0
        state["xi"].fill_(x - 1)

    theirs = coopers(start=start, x=x, dual=cooper_nu_pi("SGD", nu), second=as_documented)
    agree(ours(NuPI(0.3, 0.8, nu, 0.0, 100.0), x, start), theirs)


def test_pid_without_derivative_is_coopers_nu_pi_as_long_as_nothing_is_projected():
    # The positional form is the recursive one summed up, from xi = 0 before the first step; with
    # nu = 0 there is no average whose start could differ.
    theirs = coopers(start=1.0, x=3.0, dual=cooper_nu_pi("ZEROS", 0.0))
    assert min(theirs[1]) > 0
    agree(ours(PID(0.3, 0.8, 0.0, 0.0, 100.0), 3.0, 1.0), theirs)
