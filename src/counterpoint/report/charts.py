"""What a chart shows, before any library draws it: lines, a heat map, histograms.

Not here: drawing (``drawing``), and finding what to show (``curves``, ``movement``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from counterpoint.language import phrase

Dash = Literal["solid", "dashed", "dotted", "dotdash"]
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted", "dotdash")

POINTS = 1200
"""Most points of a line; a screen has fewer columns for it."""


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One curve of a chart.

    Args:
        key: unlike that of any other line of the chart.
        label: for the legend.
        role: its colour, a key of ``palette.COLOURS``.
        x: optimizer steps, rising.
        y: values; NaN leaves a gap.
        dash: how it is drawn.
        marks: draw each point, for lines of few of them.
        axes: other values of ``x`` to choose, by their names: pairs seen, hours.
        low: lower ends of the values' intervals, as many as there are values, or none.
        high: upper ends.
    """

    key: str
    label: str
    role: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dash: Dash = "solid"
    marks: bool = False
    axes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def dotted(self) -> bool:
        """Whether points are drawn: if ``marks``, or where one between gaps has no line to it."""
        if self.marks:
            return True
        known = np.isfinite(np.array([math.nan, *self.y, math.nan], dtype=np.float64))
        return bool(np.any(known[1:-1] & ~known[:-2] & ~known[2:]))


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over steps.

    Args:
        key: unlike that of any other chart of the page.
        title: what is shown.
        unit: of the values, in words.
        lines: at least one.
        log: draw values on a logarithmic scale.
        note: how to read it, a sentence.
    """

    key: str
    title: str
    unit: str
    lines: tuple[ChartLine, ...]
    log: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a heat map.

    Args:
        row: from 0, counted from the top.
        left: first step it stands for.
        right: last one.
        value: what its colour says, at least 0.
        shown: more to say of it, by name, in words.
    """

    row: int
    left: float
    right: float
    value: float
    shown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Rows by steps, colours by a logarithmic scale.

    Args:
        key: unlike that of any other chart of the page.
        title: what is shown.
        unit: of the values, in words.
        rows: their names, from the top.
        cells: in any order.
        note: how to read it, a sentence.
    """

    key: str
    title: str
    unit: str
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """One histogram.

    Args:
        key: unlike that of any other of the chart.
        label: for the legend.
        role: its colour, a key of ``palette.COLOURS``.
        edges: one more than there are counts, rising.
        counts: at least 0.
    """

    key: str
    label: str
    role: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Histograms laid over each other.

    Args:
        key: unlike that of any other chart of the page.
        title: what is shown.
        unit: of the edges, in words.
        bars: at least one.
        note: how to read it, a sentence.
    """

    key: str
    title: str
    unit: str
    bars: tuple[Bars, ...]
    note: str = ""


Chart = LineChart | HeatMap | Histogram


def thinned(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Which points to draw so that a long line looks as it would with all of them.

    Neighbours are taken together, and of each such group the least and the greatest value stay,
    so that no spike is lost; so do the first and the last point, and a gap where there is one.

    Args:
        values: of the line, in the order of its steps; NaN is a gap.
        most: points that may remain, about; at least 8.

    Returns:
        Places in ``values``, rising.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    array = np.asarray(values, dtype=np.float64)
    edges = np.linspace(0, count, max(2, most // 3) + 1).astype(int)
    kept = {0, count - 1}
    for left, right in itertools.pairwise(edges.tolist()):
        part = array[left:right]
        known = np.flatnonzero(~np.isnan(part))
        if len(known) < len(part):
            kept.add(int(left + np.flatnonzero(np.isnan(part))[0]))
        if len(known):
            seen = part[known]
            kept.update((int(left + known[seen.argmin()]), int(left + known[seen.argmax()])))
    return sorted(kept)


def thin(line: ChartLine, most: int = POINTS) -> ChartLine:
    """The line with the points of ``thinned``."""
    places = thinned(line.y, most)
    if len(places) == len(line.y):
        return line

    def pick(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[place] for place in places)

    return replace(
        line,
        x=pick(line.x),
        y=pick(line.y),
        axes={name: pick(values) for name, values in line.axes.items()},
        low=pick(line.low) if line.low else (),
        high=pick(line.high) if line.high else (),
    )


def number(value: float | None) -> str:
    """A number for people: four digits that count, thousands set apart.

    Args:
        value: None and NaN are a dash.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.4g}"
    if abs(value) < 1 and text.removeprefix("-") == "1":
        text = text.replace("1", "0.9999")  # nearly all must not be shown as all
    return text.replace("-", "−", 1) if text.startswith("-") else text


def line_in_words(line: ChartLine, *, ends: bool = True) -> str:
    """A line as a sentence, for those who do not see it.

    Args:
        line: of at least one point.
        ends: say its least and greatest value, too.
    """
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)]
    if not known:
        return phrase("{name}: no finite value.", name=line.label)
    (first_x, first), (last_x, last) = known[0], known[-1]
    if len(known) == 1:
        text = "{name}: {value} at step {step}."
        return phrase(text, name=line.label, value=number(first), step=number(first_x))
    told = {
        "name": line.label,
        "first": number(first),
        "begin": number(first_x),
        "last": number(last),
        "end": number(last_x),
    }
    if not ends:
        return phrase("{name}: {first} at step {begin}, {last} at step {end}.", **told)
    low_x, low = min(known, key=lambda point: point[1])
    high_x, high = max(known, key=lambda point: point[1])
    return phrase(
        "{name}: {first} at step {begin}, {last} at step {end}; least {low} at {low_step}, "
        "greatest {high} at {high_step}.",
        **told,
        low=number(low),
        low_step=number(low_x),
        high=number(high),
        high_step=number(high_x),
    )
