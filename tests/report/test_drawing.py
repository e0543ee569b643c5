"""What a chart draws is what was logged: nothing leaves its scale by rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterpoint.report.charts import Bars, Cell, ChartLine, HeatMap, Histogram, LineChart, number
from counterpoint.report.columns import Mark, drawn_columns, scales, shape
from counterpoint.report.constraints import constraint_in_words
from counterpoint.report.curves import TRAINING, Series
from counterpoint.report.drawing import draw
from counterpoint.report.movement import group_chart


def heat(*values: float) -> HeatMap:
    cells = tuple(Cell(row, 0.0, 10.0, value) for row, value in enumerate(values))
    return HeatMap("movement", "", "", tuple(f"layer {row}" for row in range(len(cells))), cells)


def chart(*values: float, **more: Any) -> LineChart:
    steps = tuple(float(step) for step in range(1, len(values) + 1))
    return LineChart(
        "loss", "Loss", "", (ChartLine("loss/training", "", "series-1", steps, values),)
    )


@given(st.lists(st.floats(0.0, allow_infinity=False), min_size=1, max_size=20))
@example([0.1, 0.2])  # as a float32, 0.1 is above its float64; 0.3 is below
@example([0.3, 0.7, 0.0])
@example([1e-50, 1e-4])  # 0 as a float32
@example([1e300, 5e-324])
@example([7e-9])
@example([0.0])
def test_a_cell_is_below_the_scale_exactly_where_nothing_moved(values: list[float]) -> None:
    chart = heat(*values)
    low, high = scales([chart])["movement"]
    shades = drawn_columns([chart])["movement"]["shade"]
    assert 0 < low < high < math.inf
    assert math.isfinite(math.log(high / low))
    # the library's rule: what is below the scale's lower end takes the colour of what is idle
    assert [bool(shade < low) for shade in shades] == [value == 0 for value in values]
    assert all(shade <= high for shade in shades)


def test_numbers_reach_the_page_as_they_were_logged() -> None:
    values = (0.1, 16_777_217.0, 1e39, 1e-46)
    line = ChartLine("k", "", "series-1", (1, 2, 3, 4), values, axes={"pairs": values}, low=values)
    drawn = drawn_columns([LineChart("c", "", "", (line,))])["k"]
    assert drawn["y"].tolist() == drawn["pairs"].tolist() == list(values)
    bars = Bars("b", "", "series-1", (0.1, 0.3, 16_777_217.0), (1.0, 16_777_217.0))
    drawn = drawn_columns([Histogram("h", "", "", (bars,))])["b"]
    assert drawn["left"].tolist() == [0.1, 0.3]
    assert drawn["right"].tolist() == [0.3, 16_777_217.0]
    assert drawn["top"].tolist() == [1.0, 16_777_217.0]
    assert drawn_columns([heat(0.1)])["movement"]["value"].tolist() == [0.1]
    far = Mark(3_000_000_000, 3_000_000_001, 1, "")
    assert drawn_columns([], [far])["alarms"]["step"].tolist() == [3_000_000_001]


def test_what_is_not_finite_is_a_gap_and_never_an_end_of_an_axis() -> None:
    line = ChartLine(
        "k", "", "series-1", (1, 2), (1.0, 2.0), low=(-math.inf, 1.0), high=(math.inf, 3.0)
    )
    drawn = drawn_columns([LineChart("c", "", "", (line,))])["k"]
    assert np.isnan(drawn["low"][0])
    assert np.isnan(drawn["high"][0])
    assert drawn["high"][1] == 3.0


@pytest.mark.parametrize(
    ("values", "dotted"),
    [
        ((1.0, 2.0, 3.0), False),
        ((1.0, math.nan, 2.0, 3.0), True),  # the first has no line to it
        ((1.0, 2.0, math.nan, 3.0, math.nan), True),
        ((math.nan, 1.0, 2.0), False),
        ((5.0,), True),
    ],
)
def test_a_point_between_gaps_is_drawn(values: tuple[float, ...], dotted: bool) -> None:
    [line] = chart(*values).lines
    assert line.dotted is dotted
    # a page that follows the run is loaded again where dots are new
    assert (shape([chart(*values)]) == shape([chart(*[1.0] * len(values))])) is (
        dotted == chart(*[1.0] * len(values)).lines[0].dotted
    )


@pytest.mark.parametrize(
    ("values", "span"),
    [((1e-6, 1e-6, 1e-6), 2e-7), ((-400.0,), 80.0), ((0.0, 0.0), 2.0), ((math.nan,), 2.0)],
)
def test_a_line_of_one_value_is_shown_on_an_axis_of_its_own_size(
    values: tuple[float, ...], span: float
) -> None:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    models = str(draw([chart(*values)]).document)
    assert f"'default_span': {span}" in models or span == 2.0


def test_a_group_that_did_not_move_at_a_look_leaves_a_gap_there() -> None:
    looks = [
        {"step": step, "groups": {"mlp": {"update": update}, "norms": {"update": 0.0}}}
        for step, update in ((10, 1e-6), (20, 0.0), (30, 2e-6))
    ]
    found = group_chart(looks)
    assert found is not None
    [line] = found.lines  # nothing of the norms has a logarithm
    assert line.x == (10, 20, 30)
    assert line.y[0] == pytest.approx(1e-7)
    assert math.isnan(line.y[1])


def test_nearly_one_and_beyond_a_screen_are_written_so() -> None:
    assert number(0.99999) == "0.9999"
    assert number(-0.999999) == "−0.9999"
    assert number(1e300) == "1e+300"


def test_a_bound_whose_last_evaluation_was_not_finite_has_no_side() -> None:
    one = {"name": "length", "bound": 2.0}
    series = {
        (TRAINING, "constraints/length/value"): Series((1,), (1.5,), (0.0,)),
        ("eval", "constraints/length/value"): Series((1,), (math.nan,), (0.0,)),
    }
    assert constraint_in_words(one, series).endswith("On eval it was not a finite number.")
