"""Means, changes and wins of scored texts."""

from __future__ import annotations

import math
import random

import pytest

from counterpoint.evaluation.bootstrap import Resampling
from counterpoint.evaluation.scored_texts import score_changes, score_means

PLAN = Resampling(resamples=200)


def scores(seed: int, shift: float = 0.0, count: int = 80) -> list[float | None]:
    chance = random.Random(seed)
    return [None if n % 9 == seed else chance.gauss(shift, 1) for n in range(count)]


def test_a_text_without_a_score_is_left_out_of_the_mean_and_counted() -> None:
    one = score_means({"x": [1.0, None, 3.0, None]}, PLAN)["x"]
    assert (one.mean.value, one.scored, one.without) == (2, 2, 2)
    nothing = score_means({"x": [None, None]}, PLAN)["x"]
    assert math.isnan(nothing.mean.value)
    assert (nothing.scored, nothing.without) == (0, 2)


def test_two_models_are_compared_where_both_have_a_score() -> None:
    found = score_changes({"x": [1.0, None, 2.0, 5.0]}, {"x": [3.0, 9.0, None, 5.0]}, PLAN)["x"]
    assert found.prompts == 2
    assert found.change.value == 1
    assert found.wins.value == 0.75  # a win and a tie


def test_wins_of_one_are_losses_of_the_other_and_no_unit_changes_them() -> None:
    before, after = scores(1), scores(2, shift=0.8)
    won = score_changes({"x": before}, {"x": after}, PLAN)["x"]
    lost = score_changes({"x": after}, {"x": before}, PLAN)["x"]
    assert won.wins.value + lost.wins.value == pytest.approx(1, abs=1e-12)
    assert won.change.value == pytest.approx(-lost.change.value, abs=1e-12)

    def curved(numbers: list[float | None]) -> list[float | None]:
        return [None if one is None else math.exp(3 * one) for one in numbers]

    other = score_changes({"x": curved(before)}, {"x": curved(after)}, PLAN)["x"]
    assert other.wins == won.wins


def test_the_interval_holds_the_value_and_leaves_out_an_even_match_where_one_is_better() -> None:
    found = score_changes({"x": scores(1)}, {"x": scores(2, shift=2.0)}, PLAN)["x"]
    assert 0.5 < found.wins.low < found.wins.value < found.wins.high <= 1
    assert 0 < found.change.low < found.change.value < found.change.high
    even = score_changes({"x": scores(1)}, {"x": scores(1)}, PLAN)["x"]
    assert (even.wins.value, even.change.value) == (0.5, 0)


def test_of_a_penalty_the_lower_score_wins() -> None:
    before, after = scores(1), scores(2, shift=2.0)
    usual = score_changes({"x": before}, {"x": after}, PLAN)["x"]
    penalty = score_changes({"x": before}, {"x": after}, PLAN, {"x"})["x"]
    assert penalty.change == usual.change
    assert penalty.wins.value == pytest.approx(1 - usual.wins.value, abs=1e-12)
    assert (usual.lower_is_better, penalty.lower_is_better) == (False, True)
