"""How far pairs go by their pictures: exact values of small sets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from counterpoint.evaluation.bootstrap import Resampling
from counterpoint.evaluation.scores import PairScores
from counterpoint.evaluation.without_pictures import HARDLY, picture_effect

PLAN = Resampling(resamples=200)


def scores(margins: list[float], rows: list[int] | None = None) -> PairScores:
    """Pairs of prompts of their own, with these margins of reward."""
    count = len(margins)
    ones, zeros = np.ones(count, dtype=np.int64), np.zeros(count)
    numbers = np.arange(count) if rows is None else np.array(rows)
    return PairScores(numbers, numbers, np.array(margins), zeros, zeros, zeros, ones, ones)


def test_each_number_is_what_its_name_says() -> None:
    shown, blank = [4.0, -2.0, 1.0, 3.0, 2.0], [4.1, 2.0, -1.0, 3.1, 2.0]
    effect = picture_effect(scores(shown), scores(blank), PLAN)
    assert effect.bound == HARDLY * 2.0  # the median size is 2
    value = {name: estimate.value for name, estimate in effect.measures.items()}
    assert value["accuracy"] == value["accuracy_blank"] == 4 / 5
    assert value["kept_preference"] == value["unmoved"] == 3 / 5
    assert value["margin_change"] == pytest.approx((-0.1 - 4 + 2 - 0.1) / 5)
    assert effect.change_quantiles[0.5] == pytest.approx(-0.1)
    assert [one.row for one in effect.least] == [4, 0, 3, 2, 1]
    assert (effect.least[-1].margin, effect.least[-1].blank) == (-2.0, 2.0)
    assert json.loads(json.dumps(effect.as_dict()))["change_quantiles"]["0.5"] == pytest.approx(
        -0.1
    )


def test_rows_are_compared_with_themselves_and_those_without_pictures_left_out() -> None:
    effect = picture_effect(scores([1.0, 2.0, 3.0, 4.0]), scores([4.0, 2.0], [3, 1]), PLAN)
    assert effect.pairs == 2
    assert {one.row: one.margin - one.blank for one in effect.least} == {1: 0.0, 3: 0.0}


@pytest.mark.parametrize(
    ("unmoved", "moved", "said"), [(30, 0, True), (25, 5, True), (16, 14, False), (3, 0, False)]
)
def test_most_is_said_where_chance_does_not_explain_it(
    unmoved: int, moved: int, said: bool
) -> None:
    shown = [2.0] * (unmoved + moved)
    effect = picture_effect(scores(shown), scores([2.0] * unmoved + [-2.0] * moved), PLAN)
    assert effect.measures["unmoved"].value == unmoved / len(shown)
    assert effect.mostly_unmoved is said


def test_margins_that_are_no_numbers_have_moved() -> None:
    effect = picture_effect(scores([float("nan"), 1.0]), scores([1.0, 1.0]), PLAN)
    assert effect.measures["unmoved"].value == 0  # nor is the bound a number
    assert effect.mostly_unmoved is False
