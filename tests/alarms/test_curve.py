"""Levels, noise and chance of a metric, on numbers whose noise is known."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest

from counterpoint.alarms.curve import CHANCE, LEAST, WINDOW, Curve, noise, robust_spread, sure
from counterpoint.alarms.curve import gaussian as gaussian_bound


def gaussian(count: int, *, seed: int = 0, deviation: float = 1.0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, deviation) for _ in range(count)]


def curve(values: list[float]) -> Curve:
    return Curve(enumerate(values, start=1))


def test_the_spread_of_gaussian_values_is_their_standard_deviation() -> None:
    # the MAD's own relative deviation is 1.17 / sqrt(2 n): 1.2 % for 5,000
    assert robust_spread(gaussian(5000, deviation=3.0)) == pytest.approx(3.0, rel=0.05)


def test_a_stray_value_hardly_changes_the_spread() -> None:
    values = gaussian(101)
    assert robust_spread([*values, 1e9]) < 1.1 * robust_spread(values)


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
    """Of 400 curves of pure noise, looked at from their sixth line on, next to none err."""
    wrong = 0
    for seed in range(400):
        one, risen = Curve(), False
        for step, value in enumerate(gaussian(40, seed=seed)):
            one.add(step, value)
            risen |= one.has_risen
        wrong += risen
    assert wrong <= 400 * CHANCE


def test_a_change_of_ten_deviations_is_seen_in_three_lines() -> None:
    moved = curve([*gaussian(WINDOW), *(value + 10 for value in gaussian(3, seed=1))])
    assert moved.has_risen


def test_the_fewer_lines_tell_the_noise_the_more_of_it_a_change_must_pass() -> None:
    # Student's t at 1e-6, one-sided, of 100 / 3 and of 20 degrees of freedom
    assert sure(100, 100) == pytest.approx(5.741, rel=2e-3)
    assert sure(60, 100) == pytest.approx(6.597, rel=3e-3)
    assert sure(10**6, 100) == pytest.approx(gaussian_bound(100), rel=1e-4)
    bounds = [sure(lines, 100) for lines in range(4, 200)]
    assert sorted(bounds, reverse=True) == bounds


def test_the_more_often_one_looks_the_surer_one_must_be() -> None:
    assert sorted(map(gaussian_bound, range(1, 200))) == [gaussian_bound(n) for n in range(1, 200)]
    spent = sum(1 - NormalDist().cdf(gaussian_bound(look)) for look in range(1, 1000))
    assert spent == pytest.approx(CHANCE * math.pi**2 / 6, rel=2e-3)
