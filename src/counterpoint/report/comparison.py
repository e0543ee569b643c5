"""Several runs side by side: how they differ first, then their curves laid over each other.

Not here: one run alone (``run_report``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.language import phrase
from counterpoint.markup import Content, Markup, element, fold, plain_json, table
from counterpoint.report import story
from counterpoint.report.charts import DASHES, ChartLine, LineChart, number, thin
from counterpoint.report.curves import (
    LESS_WANTED,
    PANELS,
    TRAINING,
    Panel,
    Series,
    SeriesTable,
    is_logarithmic,
    is_marked,
    panels_of,
    read_series,
    sets_of,
)
from counterpoint.report.drawing import draw
from counterpoint.report.objective import adapter_options, typeset
from counterpoint.report.page import Page, PageParts, Section, chart_figure, page_html
from counterpoint.report.palette import SERIES
from counterpoint.report.run_report import chart_groups, run_title
from counterpoint.runlog import Run

AXES = {"step": "step", "pairs": "pairs seen", "hours": "hours"}
"""What curves may be drawn over -> the axis's name."""

_NO_MATTER = frozenset({"output_dir", "run_name", "logging_dir", "resume_from_checkpoint"})
"""Options that differ between any two runs."""
_SPEEDS = frozenset(panel.key for panel in PANELS if panel.part == "speed")
_GENERAL = ("environment", "versions", "model", "layout", "step_pairs", "rounding")


@dataclass(frozen=True, slots=True)
class _Named:
    """A run with a name unlike the others', and its curves."""

    name: str
    run: Run
    series: SeriesTable


def comparison(runs: Sequence[Run], *, now: float | None = None) -> str:
    """The comparison of runs as one HTML file.

    Args:
        runs: two or more.
        now: seconds since 1970; None asks the clock.

    Raises:
        SetupError: CP502 where Bokeh is not installed.
    """
    page = comparison_page(runs, now=now)
    return page_html(page, draw(page.charts, axis=phrase(page.axis)))


def comparison_page(runs: Sequence[Run], *, now: float | None = None) -> Page:
    """The page of a comparison, before it is drawn.

    Args:
        runs: two or more.
        now: seconds since 1970; None asks the clock.
    """
    named = [
        _Named(name, run, read_series(run.metrics))
        for name, run in zip(run_titles(runs), runs, strict=True)
    ]
    parts = PageParts()
    curves = tuple(sorted(_charts(named), key=lambda chart: not _is_wanted(chart)))
    charts = [(_is_wanted(chart), chart_figure(chart, parts)) for chart in curves]
    sections = [
        Section("differences", phrase("What differs"), _differences(named)),
        Section("results", phrase("Results"), _results(named)),
        Section("curves", phrase("Curves"), _curves(charts)),
    ]
    return Page(
        title=f"{_all_of([one.name for one in named])} · Counterpoint",
        top=_top(named, now),
        sections=sections,
        charts=curves,
        parts=parts.content,
    )


def _all_of(names: Sequence[str]) -> str:
    first, last = ", ".join(names[:-1]), names[-1]
    return phrase("{first} and {last}", first=first, last=last) if first else last


def run_titles(runs: Sequence[Run]) -> list[str]:
    """Names of runs, each unlike the others: with their parents' where they are alike."""
    short = [run_title(run) for run in runs]
    found = []
    for place, run in enumerate(runs):
        name = short[place]
        if short.count(name) > 1:
            name = f"{run.folder.resolve().parent.name}/{name}"
        found.append(name if name not in found else f"{name} ({place + 1})")
    return found


# ---- the parts ----


def _top(named: Sequence[_Named], now: float | None) -> list[Content]:
    rows = []
    for place, one in enumerate(named):
        found = story.verdict(one.run, now)
        said = {"headline": found.headline, "sentence": found.sentence}
        rows.append(
            [
                _swatched(one.name, place),
                story.method(one.run),
                story.state_in_words(one.run, now),
                story.duration(one.run) or "–",
                element("td", phrase("{headline}. {sentence}", **said)),
            ]
        )
    columns = [phrase(name) for name in ("run", "method", "state", "time", "verdict")]
    return [
        element("p", phrase("Comparison"), class_="kicker"),
        element("h1", phrase("{count} runs side by side", count=len(named))),
        table(columns, rows, label=phrase("The runs"), names=columns[1:]),
    ]


def _swatched(name: str, place: int) -> Markup:
    style = f"color:var(--{SERIES[place % len(SERIES)]})"
    return element("span", element("span", class_="swatch", style=style), name)


def _differences(named: Sequence[_Named]) -> list[Content]:
    runs = [one.run for one in named]
    objectives = [str(run.facts.get("objective") or "") for run in runs]
    formulas = {
        name: [dict(typeset(text)).get(name) for text in objectives]
        for name in dict.fromkeys(name for text in objectives for name, _ in typeset(text))
    }
    options = differing([_options(run) for run in runs])
    data = differing([_data(run) for run in runs])
    machine = differing([_general(run) for run in runs])
    return [
        _block(phrase("Objective"), {k: v for k, v in formulas.items() if len(set(v)) > 1}, named),
        _block(phrase("Options"), options, named),
        _block(phrase("Data"), data, named),
        _block(phrase("Machine and versions"), machine, named),
    ]


def _block(title: str, rows: Mapping[str, Sequence[Any]], named: Sequence[_Named]) -> list[Content]:
    heading = element("h3", title, class_="above")
    if not rows:
        return [heading, element("p", phrase("The same in all of them."), class_="none")]
    body = [
        [element("code", name), *(_told(value, values) for value in values)]
        for name, values in rows.items()
    ]
    head = ["", *(_swatched(one.name, place) for place, one in enumerate(named))]
    names = [one.name for one in named]
    label = phrase("{title}: what differs", title=title)
    return [heading, table(head, body, label=label, class_="runs", names=names)]


def _told(value: Any, values: Sequence[Any]) -> Markup:
    """A value; marked where most of the runs have another."""
    alike = sum(plain_json(value) == plain_json(other) for other in values)
    shown = "–" if value is None else element("code", plain_json(value))
    return element("td", shown, class_="apart" if alike * 2 <= len(values) > 2 else "")


def differing(described: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What is not the same in all of several descriptions.

    Args:
        described: names and values of each.

    Returns:
        Name -> its value in each, None where it has none; in the order of the first.
    """
    found = {}
    for name in dict.fromkeys(name for one in described for name in one):
        values = [one.get(name) for one in described]
        if len({plain_json(value) for value in values}) > 1:
            found[name] = values
    return found


def _options(run: Run) -> dict[str, Any]:
    options: Mapping[str, Any] = run.facts.get("options") or {}
    own = {name: value for name, value in options.items() if name not in _NO_MATTER}
    return own | {f"adapter, {key}": value for key, value in adapter_options(run.facts).items()}


def _data(run: Run) -> dict[str, Any]:
    """Rows, cuts and digest of each set; not how its lengths are spread."""
    data: Mapping[str, Any] = run.facts.get("data") or {}
    wanted = ("digest", "rows", "kept", "dropped", "cut_rows", "cut_tokens", "tokens")
    return {
        f"{name}, {what.replace('_', ' ')}": account[what]
        for name, account in data.items()
        for what in wanted
        if what in account
    }


def _general(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _GENERAL:
        value = run.facts.get(name)
        if isinstance(value, Mapping):
            found |= {f"{name}, {key}": part for key, part in value.items()}
        elif value is not None:
            found[name] = value
    return found


def _results(named: Sequence[_Named]) -> list[Content]:
    by_set: dict[str, list[list[Content]]] = {}
    panels = [one for one in _panels(named) if one.part != "speed" and one.key != "learning_rate"]
    sets = list(dict.fromkeys(name for one in named for name in sets_of(one.series)))
    # losses of different objectives say nothing of each other
    one_objective = len({one.run.facts.get("objective") for one in named}) == 1
    for set_name in sorted(sets, key=lambda name: name == TRAINING):
        for panel in panels:
            best = panel.best if one_objective or panel.key != "loss" else None
            for metric, label in panel.metrics.items():
                last = [_last(one.series.get((set_name, metric))) for one in named]
                if any(value is not None for value in last):
                    name = [_titled(panel, label), " ", element("small", phrase(set_name))]
                    cells = [element("span", name), *_marked(last, best)]
                    by_set.setdefault(set_name, []).append(cells)
    alarms = [phrase("Alarms"), *_marked([float(len(one.run.alarms)) for one in named], "least")]
    # the first set is what one compares by: the evaluation's, if there is one
    [first, *others] = [*by_set.items()] or [(TRAINING, [])]
    head = [phrase("last value"), *(_swatched(one.name, place) for place, one in enumerate(named))]
    return [
        element(
            "p",
            phrase("The best of each row is bold, where one can say what is better."),
            class_="hint",
        ),
        _last_values(head, [*first[1], alarms], first[0], named),
        [fold(phrase(name), _last_values(head, rows, name, named)) for name, rows in others],
    ]


def _last_values(
    head: Sequence[Content], rows: Sequence[Sequence[Content]], name: str, named: Sequence[_Named]
) -> Markup:
    names = [one.name for one in named]
    label = phrase("Last values, {name}", name=phrase(name))
    return table(head, rows, label=label, class_="numbers runs", names=names)


def _last(series: Series | None) -> float | None:
    return None if series is None or math.isnan(series.values[-1]) else series.values[-1]


def _marked(values: Sequence[float | None], best: str | None) -> list[Content]:
    known = [value for value in values if value is not None]
    top = None
    # where all are alike, none is best
    if best and len(set(known)) > 1:
        top = min(known) if best == "least" else max(known)
    return [
        element("td", number(value), class_="best")
        if value is not None and value == top
        else number(value)
        for value in values
    ]


def _titled(panel: Panel, label: str) -> str:
    return f"{phrase(panel.title)}, {phrase(label)}" if label else phrase(panel.title)


def _panels(named: Sequence[_Named]) -> list[Panel]:
    found = {panel.key: panel for one in named for panel in panels_of(one.series)}
    return sorted(found.values(), key=lambda panel: panel.part)


def _is_wanted(chart: LineChart) -> bool:
    panel, _, _ = chart.key.rpartition("-")
    return panel not in LESS_WANTED and panel not in _SPEEDS


def _curves(charts: Sequence[tuple[bool, Markup]]) -> Content:
    if not charts:
        return element("p", phrase("None of the runs has logged anything yet."), class_="none")
    choices = [
        element(
            "label",
            element(
                "input",
                type="radio",
                name="axis",
                value=axis,
                data_label=phrase(name),
                checked=axis == "step",
            ),
            f" {phrase(name)}",
        )
        for axis, name in AXES.items()
    ]
    return [
        element("fieldset", element("legend", phrase("Drawn over")), choices, class_="chooser"),
        chart_groups(charts),
    ]


def _charts(named: Sequence[_Named]) -> tuple[LineChart, ...]:
    charts = []
    for panel in _panels(named):
        for place, (metric, label) in enumerate(panel.metrics.items()):
            lines = tuple(
                thin(line)
                for number_of_run, one in enumerate(named)
                for line in _lines(one, number_of_run, f"{panel.key}-{place}", metric)
            )
            if lines:
                title = _titled(panel, label)
                key = f"{panel.key}-{place}"
                log = is_logarithmic(panel, lines)
                unit, note = phrase(panel.unit), phrase(panel.note)
                charts.append(LineChart(key, title, unit, lines, log, note))
    return tuple(charts)


def _lines(one: _Named, place: int, chart: str, metric: str) -> list[ChartLine]:
    started = min((line["time"] for line in one.run.metrics if "time" in line), default=0.0)
    pairs = one.run.facts.get("step_pairs") or 1
    lines = []
    for number_of_set, set_name in enumerate(sets_of(one.series)):
        series = one.series.get((set_name, metric))
        if series is None:
            continue
        lines.append(
            ChartLine(
                key=f"{chart}/{place}/{set_name}",
                label=one.name if set_name == TRAINING else f"{one.name}, {phrase(set_name)}",
                role=SERIES[place % len(SERIES)],
                x=series.steps,
                y=series.values,
                dash=DASHES[number_of_set % len(DASHES)],
                marks=is_marked(set_name, series),
                axes={
                    "pairs": tuple(float(step * pairs) for step in series.steps),
                    "hours": tuple((at - started) / 3600 for at in series.times),
                },
            )
        )
    return lines
