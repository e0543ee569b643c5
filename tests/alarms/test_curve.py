"""Levels, noise and chance of a metric, on numbers whose noise is known."""

from __future__ import annotations

import random

import pytest

from counterpoint.alarms.curve import GAUSSIAN, LEAST, WINDOW, Curve, noise, spread, sure


def gaussian(count: int, *, seed: int = 0, deviation: float = 1.0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, deviation) for _ in range(count)]


def curve(values: list[float]) -> Curve:
    return Curve(enumerate(values, start=1))


def test_the_spread_of_gaussian_values_is_their_standard_deviation() -> None:
    # the MAD's own relative deviation is 1.17 / sqrt(2 n): 1.2 % for 5,000
    assert spread(gaussian(5000, deviation=3.0)) == pytest.approx(3.0, rel=0.05)


def test_a_stray_value_hardly_changes_the_spread() -> None:
    values = gaussian(101)
    assert spread([*values, 1e9]) < 1.1 * spread(values)


def test_a_steady_drift_is_no_noise() -> None:
    values = gaussian(200)
    drifting = [value + 7 * number for number, value in enumerate(values)]
    assert noise(drifting) == pytest.approx(noise(values), rel=1e-9)
    assert noise(gaussian(5000, deviation=2.0)) == pytest.approx(2.0, rel=0.08)


def test_of_fewer_than_three_values_no_noise_is_known() -> None:
    assert noise([1.0]) == noise([1.0, 5.0]) == 0.0


def test_one_stray_line_moves_neither_start_nor_level() -> None:
    assert curve([1.0, 99.0, 1.0, 2.0, 2.0, -99.0]).start == 1.0
    assert curve([1.0, 99.0, 1.0, 2.0, 2.0, -99.0]).level == 2.0


def test_nothing_is_judged_before_start_and_level_are_of_different_lines() -> None:
    jump = [0.0] * 3 + [1e6] * 3
    assert [curve(jump[:n]).has_risen for n in range(1, 7)] == [False] * 5 + [True]
    assert len(jump) == LEAST


def test_a_curve_remembers_since_when_it_has_been_away_from_its_start() -> None:
    rising = curve([1.0, 1.0, 1.0, 0.9, 1.0, 1.5, 2.0, 3.0])
    assert (rising.low_until, rising.high_until) == (5, 8)
    assert (rising.peak, rising.peak_step) == (2.0, 8)


def test_chance_alone_seldom_moves_a_curve() -> None:
    """Pure noise, looked at 12,000 times while it is short: not one look errs."""
    wrong = 0
    for seed in range(200):
        one = Curve()
        for step, value in enumerate(gaussian(60, seed=seed)):
            one.add(step, value)
            wrong += one.has_risen
    assert wrong == 0


def test_a_change_of_ten_deviations_is_seen_in_three_lines() -> None:
    moved = curve([*gaussian(WINDOW), *(value + 10 for value in gaussian(3, seed=1))])
    assert moved.has_risen


def test_the_fewer_lines_tell_the_noise_the_more_of_it_a_change_must_pass() -> None:
    # Student's t at 1e-6, one-sided, of 100 / 3 and of 20 degrees of freedom
    assert sure(100) == pytest.approx(5.741, rel=2e-3)
    assert sure(60) == pytest.approx(6.597, rel=3e-3)
    assert sure(10**6) == pytest.approx(GAUSSIAN, rel=1e-4)
    assert sorted(map(sure, range(4, 200)), reverse=True) == list(map(sure, range(4, 200)))
