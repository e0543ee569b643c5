"""The constraints of a run: what was asked, whether it was held, and how the multipliers moved.

Not here: other curves (``curves``), drawing (``drawing``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from counterpoint.alarms.of_constraints import surely_above
from counterpoint.language import phrase
from counterpoint.markup import Content, element, table
from counterpoint.report.charts import ChartLine, LineChart, number, thin
from counterpoint.report.curves import TRAINING, Series, SeriesTable, is_marked, sets_of
from counterpoint.report.palette import SERIES
from counterpoint.runlog import constraint_metric

Fact = Mapping[str, Any]


def constraint_charts(facts: Mapping[str, Any], series: SeriesTable) -> tuple[LineChart, ...]:
    """Value, violation and multiplier of each constraint over the run.

    Args:
        facts: of ``run.json``.
        series: of its metrics.
    """
    found: list[LineChart] = []
    for place, one in enumerate(_asked(facts)):
        name = str(one["name"])
        value = _lines(series, name, {"value": "value", "bound": "bound"}, place)
        charts = (
            LineChart(f"held-{place}", phrase("{name}: value and bound", name=name), "", value),
            LineChart(
                f"violation-{place}",
                phrase("{name}: violation", name=name),
                phrase("value − bound"),
                _lines(series, name, {"violation": "raw", "smoothed": "smoothed"}, place),
                note=phrase("At or below 0 the bound holds."),
            ),
            LineChart(
                f"multiplier-{place}",
                phrase("{name}: multiplier", name=name),
                phrase("loss per unit of value"),
                _lines(series, name, {"multiplier": ""}, place),
                note=phrase("What the bound costs: 0 where it holds by itself."),
            ),
        )
        found += [chart for chart in charts if chart.lines]
    return tuple(found)


def _lines(
    series: SeriesTable, name: str, wanted: Mapping[str, str], place: int
) -> tuple[ChartLine, ...]:
    lines: list[ChartLine] = []
    for where in sets_of(series):
        for metric, label in wanted.items():
            found = series.get((where, constraint_metric(name, metric)))
            if found is None:
                continue
            told = [phrase(label), "" if where == TRAINING else phrase(where)]
            lines.append(
                thin(
                    ChartLine(
                        key=f"{place}/{metric}/{where}",
                        label=", ".join(part for part in told if part),
                        role=SERIES[len(lines) % len(SERIES)],
                        x=found.steps,
                        y=found.values,
                        dash="dashed" if metric == "bound" else "solid",
                        marks=is_marked(where, found),
                    )
                )
            )
    return tuple(lines)


_TITLES = (
    "",
    "bound",
    "last quarter",
    "held out",
    "multiplier",
    "steps that held",
    "at the cap",
    "rule",
)


def account(facts: Mapping[str, Any], series: SeriesTable) -> Content:
    """A sentence for each constraint, and a table of what was asked and what came of it.

    Args:
        facts: of ``run.json``.
        series: of its metrics.
    """
    asked = _asked(facts)
    titles = [phrase(title) for title in _TITLES]
    rows = [_row(one, series) for one in asked]
    return [
        element("ul", [element("li", constraint_in_words(one, series)) for one in asked]),
        table(titles, rows, label=phrase("Constraints"), class_="numbers"),
    ]


def constraint_in_words(one: Fact, series: SeriesTable) -> str:
    """Whether a constraint was held, in a sentence or two.

    Args:
        one: an entry of ``run.json``'s "constraints".
        series: of the run's metrics.
    """
    name, bound, value = one["name"], one.get("bound"), _late(series, one["name"], "value")
    if bound is None or value is None:
        return phrase("{name}: nothing was measured.", name=name)
    told = phrase(
        "{held}: in the last quarter of the run the training estimate was {value}, the bound "
        "{bound}.",
        held=_held(series, name, value <= bound),
        value=number(value),
        bound=_bound(one, bound),
    )
    for where, last in _held_out(series, name).items():
        if not math.isfinite(last):
            told += phrase(" On {where} it was not a finite number.", where=phrase(where))
        elif last <= bound:
            text = " On {where} it is {value}, at or below the bound."
            told += phrase(text, where=phrase(where), value=number(last))
        else:
            text = " On {where} it is {value}, {excess} above the bound."
            excess = number(last - bound)
            told += phrase(text, where=phrase(where), value=number(last), excess=excess)
    return told


def _held(series: SeriesTable, name: str, below: bool) -> str:
    if below:
        return phrase("{name} was held", name=name)
    sure = surely_above(_last_quarter(series, name, "violation"))
    if sure is None:
        return phrase(
            "{name} is above its bound, in too few log lines to tell it from chance", name=name
        )
    if sure:
        return phrase("{name} was not held", name=name)
    return phrase("{name} was held as far as chance lets one tell", name=name)


def _bound(one: Fact, bound: float) -> str:
    slack = one.get("slack")
    if slack is None:
        return number(bound)
    return phrase("{bound} ({times} × initial)", bound=number(bound), times=f"{1 + slack:g}")


def _row(one: Fact, series: SeriesTable) -> list[str]:
    name = one["name"]
    rule = phrase(
        "{update}, rate {rate}, multiplier from {start}",
        update=one.get("update"),
        rate=f"{one.get('rate', 0):g}",
        start=f"{one.get('start', 0):g}",
    )
    capped = _share(_late(series, name, "at_cap"))
    bound = "—" if one.get("bound") is None else _bound(one, one["bound"])
    held_out = ", ".join(
        f"{phrase(where)} {number(x)}" for where, x in _held_out(series, name).items()
    )
    return [
        name,
        bound,
        _shown(_late(series, name, "value")),
        held_out or "—",
        _shown(_late(series, name, "multiplier")),
        _share(_late(series, name, "feasible")),
        phrase("{share} (cap {cap})", share=capped, cap=f"{one['cap']:g}")
        if "cap" in one
        else capped,
        rule,
    ]


def _asked(facts: Mapping[str, Any]) -> Sequence[Fact]:
    found = facts.get("constraints")
    return found if isinstance(found, list) else []


def _late(series: SeriesTable, name: str, metric: str) -> float | None:
    """The mean of a training metric over the last quarter of its steps."""
    known = _last_quarter(series, name, metric)
    return fmean(known) if known else None


def _last_quarter(series: SeriesTable, name: str, metric: str) -> list[float]:
    found = series.get((TRAINING, constraint_metric(name, metric)))
    if found is None:
        return []
    from_step = 0.75 * found.steps[-1]
    late = [y for x, y in zip(found.steps, found.values, strict=True) if x > from_step]
    return [value for value in late if math.isfinite(value)]


def _held_out(series: SeriesTable, name: str) -> dict[str, float]:
    """The last value of each evaluation set."""
    found: dict[str, Series] = {
        where: one
        for (where, metric), one in series.items()
        if where != TRAINING and metric == constraint_metric(name, "value")
    }
    return {where: one.values[-1] for where, one in found.items()}


def _shown(value: float | None) -> str:
    return "—" if value is None else number(value)


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.0%}"
