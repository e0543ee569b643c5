"""What charts draw, as columns of numbers: of lines, cells, bars and alarms.

Not here: drawing them (``drawing``); a page that is open already takes new columns alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterpoint.report.charts import Chart, ChartLine, HeatMap, LineChart

ALARMS = "alarms"
"""Name of the source of the alarms, which every chart over steps draws."""

_WIDEST_SCALE, _GREATEST = 1e12, 1e300
"""Between the ends of a colour scale, and its greatest end; logarithms of more overflow."""

Columns = Mapping[str, Any]
"""Columns of a source by their names; each an array, or a list of words."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """An alarm on the axis of the steps.

    Args:
        since: step at which it began.
        step: at which it was raised.
        number: of its kind, as in the list of alarms.
        text: what to say of it.
    """

    since: int
    step: int
    number: int
    text: str


def drawn_columns(charts: Sequence[Chart], marks: Sequence[Mark] = ()) -> dict[str, Columns]:
    """What every chart draws, by the names of its sources."""
    found: dict[str, Columns] = {ALARMS: alarm_columns(marks)}
    for chart in charts:
        if isinstance(chart, LineChart):
            found |= {line.key: line_columns(line) for line in chart.lines}
        elif isinstance(chart, HeatMap):
            found[chart.key] = cell_columns(chart)
        else:
            found |= {bars.key: bar_columns(bars.edges, bars.counts) for bars in chart.bars}
    return found


def scales(charts: Sequence[Chart]) -> dict[str, tuple[float, float]]:
    """The least and the greatest shade of each heat map's scale."""
    return {chart.key: scale_of(chart) for chart in charts if isinstance(chart, HeatMap)}


def shape(charts: Sequence[Chart], marks: Sequence[Mark] = ()) -> str:
    """A word for which charts and lines there are: while it stays, new data fit into the page."""
    described: list[Any] = [bool(marks)]
    for chart in charts:
        if isinstance(chart, LineChart):
            # a line of few points is drawn with marks, one with intervals with a band
            lines = [(line.key, line.dotted, bool(line.low)) for line in chart.lines]
            described.append([chart.key, chart.log, lines])
        elif isinstance(chart, HeatMap):
            described.append([chart.key, chart.rows])
        else:
            described.append([chart.key, [bars.key for bars in chart.bars]])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def alarm_columns(marks: Sequence[Mark]) -> Columns:
    """Alarms as columns."""
    return {
        "since": _numbers([mark.since for mark in marks]),
        "step": _numbers([mark.step for mark in marks]),
        "number": [str(mark.number) for mark in marks],
        "text": [mark.text for mark in marks],
    }


def _numbers(values: Sequence[float]) -> FloatArray:
    """Values as they were logged, in the precision in which scales and ranges are found.

    A smaller type would round some of them out of their scale, to zero or to infinity. What is
    not finite is a gap.
    """
    array = np.array(values, dtype=np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def line_columns(line: ChartLine) -> Columns:
    """A line as columns: its points, other axes, and the ends of its intervals."""
    other = {name: _numbers(values) for name, values in line.axes.items()}
    ends = {
        name: _numbers(values)
        for name, values in (("low", line.low), ("high", line.high))
        if line.low and line.high
    }
    return {
        "step": _numbers(line.x),
        "y": _numbers(line.y),
        **other,
        **ends,
    }


def cell_columns(chart: HeatMap) -> Columns:
    """A heat map as columns, a cell a row."""
    cells = chart.cells
    names = list(dict.fromkeys(name for cell in cells for name in cell.shown))
    return {
        "left": _numbers([cell.left for cell in cells]),
        "right": _numbers([cell.right for cell in cells]),
        "top": _numbers([cell.row for cell in cells]),
        "bottom": _numbers([cell.row + 1 for cell in cells]),
        "value": _numbers([cell.value for cell in cells]),
        "shade": _shades_of(chart),
        "row": [chart.rows[cell.row] for cell in cells],
        "shown": [
            ", ".join(f"{name} {cell.shown[name]}" for name in names if name in cell.shown)
            for cell in cells
        ],
    }


def bar_columns(edges: Sequence[float], counts: Sequence[float]) -> Columns:
    """Bars as columns.

    Args:
        edges: of the bars, one more than there are.
        counts: their heights.
    """
    return {
        "left": _numbers(edges[:-1]),
        "right": _numbers(edges[1:]),
        "top": _numbers(counts),
    }


def scale_of(chart: HeatMap) -> tuple[float, float]:
    """The least and the greatest shade of a heat map's scale."""
    values = [cell.value for cell in chart.cells if 0 < cell.value < math.inf]
    high = min(max(values, default=1.0), _GREATEST)
    low = max(min(*values, high) if values else 1e-9, high / _WIDEST_SCALE, 1 / _GREATEST)
    # a scale without a width has no colours
    return (low, high) if high > low * 1.01 else (low / 3, low * 3)


def _shades_of(chart: HeatMap) -> FloatArray:
    """What each cell's colour follows: its value within the scale; 0 for a value of 0 alone.

    The library paints what is below the scale as what did not move, so nothing else may be there.
    """
    values = np.array([cell.value for cell in chart.cells], dtype=np.float64)
    return np.where(values > 0, np.clip(values, *scale_of(chart)), 0.0)
