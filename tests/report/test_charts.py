"""Lines thinned for a screen look as they would with all their points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.report.charts import ChartLine, line_in_words, number, thin, thinned


def line(values: list[float], **more: object) -> ChartLine:
    steps = tuple(range(1, len(values) + 1))
    return ChartLine("k", "training", "series-1", steps, tuple(values), **more)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(8, 60))
def test_ends_and_extremes_stay_and_order_too(values: list[float], most: int) -> None:
    kept = thinned(values, most)
    assert kept == sorted(set(kept))
    assert {0, len(values) - 1} <= set(kept)
    assert (min(values[k] for k in kept), max(values[k] for k in kept)) == (
        min(values),
        max(values),
    )
    assert len(kept) <= max(most, 2) or len(kept) <= len(values) == most


def test_one_spike_in_a_hundred_thousand_points_stays() -> None:
    values = np.zeros(100_000)
    values[77_777] = 1.0
    kept = thinned(values.tolist())
    assert len(kept) <= 1200
    assert 77_777 in kept


def test_a_gap_stays_a_gap() -> None:
    values = [1.0] * 5000
    values[2500:2503] = [math.nan] * 3
    found = thin(line(values), 90)
    assert len(found.y) <= 90
    assert any(math.isnan(y) for y in found.y)


def test_a_short_line_keeps_every_point() -> None:
    given_line = line([3.0, 1.0, 2.0])
    assert thin(given_line) is given_line


def test_other_axes_are_thinned_alike() -> None:
    values = [math.sin(n / 50) for n in range(5000)]
    found = thin(line(values, axes={"pairs": tuple(32.0 * n for n in range(1, 5001))}))
    assert found.axes["pairs"] == tuple(32 * x for x in found.x)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.123456, "0.1235"),
        (-1.5, "−1.5"),
        (2000.0, "2,000"),
        (61234.5, "61,234"),
        (8e-7, "8e-07"),
        (0.0, "0"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, words: str) -> None:
    assert number(value) == words


def test_a_line_in_words_says_its_ends_and_extremes() -> None:
    assert line_in_words(line([2.0, 0.5, 9.0, 1.0])) == (
        "training: 2 at step 1, 1 at step 4; least 0.5 at 2, greatest 9 at 3."
    )
    assert line_in_words(line([math.nan])) == "training: no finite value."
