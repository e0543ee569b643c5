"""Runs of made-up constraints: which alarm sounds, and that healthy ones raise none."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from counterpoint.alarms.remedies import Facts
from counterpoint.runlog import Alarm
from tests.alarms.test_watch import FACTS, LINES, alarms, evaluation, lines

HELD = Facts(step_pairs=32, learning_rate=2e-4, constrained=True, steps=LINES)
BOUND, NOISE = 1.8, 0.03

Shape = Callable[[int], float]


def constrained(
    value: Shape, multiplier: Shape = lambda n: 0.5, *, seed: int = 0, name: str = "bc"
) -> list[dict[str, Any]]:
    """Log lines of a run with one constraint; noise on the value alone."""
    rng, found = random.Random(f"constrained {seed}"), lines(seed=seed)
    for number, line in enumerate(found):
        drawn = value(number) + rng.gauss(0, NOISE)
        line |= {
            f"constraints/{name}/value": drawn,
            f"constraints/{name}/bound": BOUND,
            f"constraints/{name}/violation": drawn - BOUND,
            f"constraints/{name}/multiplier": multiplier(number),
            f"constraints/{name}/feasible": float(drawn <= BOUND),
            f"constraints/{name}/at_cap": 0.0,
        }
    return found


def of_constraints(history: list[Any], facts: Facts = HELD) -> list[Alarm]:
    return [one for one in alarms(history, facts) if one.code in CODES]


HELD_OUT = "eval_constraints/bc/violation"
CODES = ("CW442", "CN443", "CW444", "CW445")


@pytest.mark.parametrize("seed", range(40))
def test_a_bound_that_is_held_raises_none(seed: int) -> None:
    """At first below, then the value settles at the bound as a multiplier makes it."""
    settles = constrained(lambda n: BOUND - 0.3 * math.exp(-n / 15), seed=seed)
    damped = constrained(
        lambda n: BOUND + 0.3 * math.exp(-n / 15) * math.sin(n / 3), seed=100 + seed
    )
    assert of_constraints(settles) == []
    assert of_constraints(damped) == []


def test_a_value_that_swings_around_its_bound_without_end_is_called_so() -> None:
    alarm, *later = of_constraints(constrained(lambda n: BOUND + 0.4 * math.sin(n / 2)))
    assert {alarm.code, *(one.code for one in later)} == {"CW442"}
    assert len(later) <= 2  # an episode may end where a line's noise is misjudged
    assert 15 < alarm.step < 60
    assert alarm.since < alarm.step


def test_a_constraint_without_a_multiplier_is_said_to_do_nothing() -> None:
    history = constrained(lambda n: BOUND - 0.5, lambda n: max(0.0, 0.2 - n / 100))
    (alarm,) = of_constraints(history)
    assert (alarm.code, alarm.step, alarm.since) == ("CN443", LINES, 20)


def test_a_bound_that_is_passed_to_the_end_is_not_held() -> None:
    (alarm,) = of_constraints(constrained(lambda n: BOUND + 0.1, lambda n: n / 10))
    assert (alarm.code, alarm.step) == ("CW444", LINES)
    assert "above its bound of 1.8" in alarm.seen


def test_only_the_last_line_of_a_run_tells_whether_a_bound_was_held() -> None:
    history = constrained(lambda n: BOUND + 0.1, lambda n: n / 10)
    longer = Facts(step_pairs=32, constrained=True, steps=10 * LINES)
    assert of_constraints(history, longer) == []


@pytest.mark.parametrize(("above", "expected"), [(0.2, ["CW445"]), (-0.1, [])])
def test_a_bound_that_holds_on_the_training_pairs_alone_is_named(
    above: float, expected: list[str]
) -> None:
    history: list[Any] = constrained(lambda n: BOUND - 0.05)
    history.append({**evaluation(LINES, 0.9), "eval_constraints/bc/violation": above})
    found = of_constraints(history)
    assert [one.code for one in found] == expected
    assert not found or "on eval" in found[0].seen


def test_two_constraints_are_judged_each_by_itself() -> None:
    one = constrained(lambda n: BOUND + 0.1, lambda n: n / 10)
    other = constrained(lambda n: BOUND - 0.5, lambda n: 0.0, name="safety")
    both = [{**second, **first} for first, second in zip(one, other, strict=True)]
    assert sorted(alarm.code for alarm in of_constraints(both)) == ["CN443", "CW444"]


def test_a_loss_that_rises_with_its_multipliers_does_not_diverge() -> None:
    rising = lines(loss=lambda n: 0.5 + n / 50)
    assert [one.code for one in alarms(rising, FACTS)] == ["CW428"]
    assert alarms(rising, HELD) == []


@pytest.mark.parametrize(("every", "steps"), [(7, 7 * LINES + 5), (7, 7 * LINES), (1, LINES)])
def test_a_run_whose_last_line_is_not_of_its_last_step_is_judged_by_it(
    every: int, steps: int
) -> None:
    facts = Facts(step_pairs=32, constrained=True, steps=steps)

    def spread(history: list[Any]) -> list[Any]:
        return [{**line, "step": every * line["step"]} for line in history]

    above = spread(constrained(lambda n: BOUND + 0.1, lambda n: n / 10))
    assert [one.code for one in of_constraints(above, facts)] == ["CW444"]
    below = spread(constrained(lambda n: BOUND - 0.05))
    looks = [{**evaluation(n * steps // 11, 0.9), HELD_OUT: 0.2} for n in range(1, 11)]
    history = sorted([*below, *looks], key=lambda line: line["step"])
    assert [one.code for one in of_constraints(history, facts)] == []
    for step in (steps - 3, steps):
        last = {**evaluation(step, 0.9), HELD_OUT: 0.2}
        assert [one.code for one in of_constraints([*history, last], facts)] == ["CW445"]
