"""The report of one run: its parts in their order, from the verdict to the environment.

Not here: the page around them (``page``), drawing (``drawing``), several runs (``comparison``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from counterpoint.language import phrase
from counterpoint.markup import Content, Markup, element, fold, plain_json, table
from counterpoint.report import story
from counterpoint.report.album import Album
from counterpoint.report.charts import Chart, number
from counterpoint.report.columns import Mark, drawn_columns, scales, shape
from counterpoint.report.constraints import account, constraint_charts
from counterpoint.report.curves import LESS_WANTED, TRAINING, SeriesTable, line_charts, read_series
from counterpoint.report.data_audit import audit, histograms, kept_in_words
from counterpoint.report.drawing import draw
from counterpoint.report.movement import group_chart, heat_map, last_look
from counterpoint.report.objective import formula_of, option_tables
from counterpoint.report.page import Page, PageParts, Section, chart_figure, page_html
from counterpoint.report.samples import before_and_after
from counterpoint.runlog import Run

SHOWN = 3
"""Kinds of alarms that are shown at once; the others are folded."""

MOST_MARKS = 120
"""Alarms drawn on the axis of the steps; the first of each kind always are."""

_SIGNS = {"good": "✓", "warn": "!", "bad": "✕", "plain": "·"}
_SPEEDS: tuple[tuple[str, str, Callable[[list[float]], float]], ...] = (
    ("pairs_per_second", "pairs a second, median", median),
    ("tokens_per_second", "tokens a second, median", median),
    ("step_seconds", "seconds a step, median", median),
    ("memory_mb", "peak memory, MB", max),
)
_TOLD = frozenset(
    {"objective", "options", "changed", "data", "environment", "versions", "command", "started"}
    | {"ended", "model", "resumed", "constraints"}
)
"""Facts of ``run.json`` that have a place of their own."""


def report_html(run: Run, *, now: float | None = None) -> str:
    """The report of a run as one HTML file.

    Args:
        run: as far as it is written.
        now: seconds since 1970; None asks the clock.

    Raises:
        SetupError: CP502 where Bokeh is not installed.
    """
    page = run_page(run, now=now)
    return page_html(page, draw(page.charts, page.marks, axis=phrase(page.axis)))


def live_report(run: Run, version: str) -> str:
    """The same, for a page that goes on asking for news; see ``news``.

    Args:
        run: as far as it is written.
        version: of what was read.
    """
    page = run_page(run)
    live = {
        "version": version,
        "shape": shape(page.charts, page.marks),
        "state": story.state_in_words(run),
    }
    return page_html(page, draw(page.charts, page.marks, axis=phrase(page.axis)), live=live)


def news(run: Run, version: str) -> str:
    """What is new in a run, as JSON for a page that follows it.

    Args:
        run: as far as it is written.
        version: of what was read.

    Returns:
        The contents of the parts that change and the columns of every chart; "shape" says whether
        they fit into the page that asks.
    """
    page = run_page(run)
    sources = {
        source: {name: _plain(values) for name, values in found.items()}
        for source, found in drawn_columns(page.charts, page.marks).items()
    }
    return json.dumps(
        {
            "version": version,
            "state": story.state_in_words(run),
            "shape": shape(page.charts, page.marks),
            "parts": page.parts,
            "sources": sources,
            "scales": scales(page.charts),
        },
        allow_nan=False,
    )


def _plain(values: Any) -> list[Any]:
    """A column as JSON takes it: what is not finite is null."""
    if isinstance(values, np.ndarray):
        return [value if np.isfinite(value) else None for value in values.tolist()]
    return list(values)


def run_title(run: Run) -> str:
    """What to call a run: its ``run_name``, else its folder's name."""
    named = (run.facts.get("options") or {}).get("run_name")
    return str(named or Path(run.folder).resolve().name)


def run_page(run: Run, *, now: float | None = None) -> Page:
    """The page of a run, before it is drawn.

    Args:
        run: as far as it is written.
        now: seconds since 1970; None asks the clock.
    """
    parts = PageParts()
    series = read_series(run.metrics)
    kinds = story.alarm_kinds(run.alarms)
    data: Mapping[str, Any] = run.facts.get("data") or {}
    curves, written, speed = (line_charts(series, part) for part in ("curves", "samples", "speed"))
    curves = tuple(sorted(curves, key=lambda one: one.key in LESS_WANTED))
    lengths = histograms(data)
    held = constraint_charts(run.facts, series)
    heat, groups = heat_map(run.movement), group_chart(run.movement)
    figure = partial(chart_figure, parts=parts)
    samples = [
        parts.keep("samples", before_and_after(run.samples, Album(run.folder))),
        element("div", [figure(one) for one in written], class_="charts"),
    ]
    moved, rate = _movement(run, heat, groups, parts), [figure(one) for one in speed]
    sections = [
        *(
            [Section("alarms", phrase("Alarms"), parts.keep("alarms", _alarms(kinds)))]
            if kinds
            else []
        ),
        Section(
            "curves",
            phrase("Curves"),
            chart_groups([(one.key not in LESS_WANTED, figure(one)) for one in curves]),
        ),
        *_constraints(run, series, [figure(one) for one in held], parts),
        Section("samples", phrase("Samples"), samples),
        Section("trained", phrase("What was trained"), _trained(run), phrase("Trained")),
        Section(
            "data",
            phrase("Data"),
            _data(data, [figure(one) for one in lengths]),
            folded=True,
            hint=kept_in_words(data),
        ),
        Section("movement", phrase("What moved"), moved, phrase("Movement"), folded=True),
        Section(
            "speed",
            phrase("Speed and memory"),
            _speed(run, series, rate, parts),
            phrase("Speed"),
            folded=True,
            hint=story.duration(run),
        ),
        Section("environment", phrase("Environment"), _environment(run), folded=True),
    ]
    return Page(
        title=f"{run_title(run)} · Counterpoint",
        top=_top(run, series, parts, now),
        sections=sections,
        charts=(
            *curves,
            *held,
            *written,
            *lengths,
            *(chart for chart in (heat, groups) if chart is not None),
            *speed,
        ),
        marks=alarm_marks(kinds),
        parts=parts.content,
    )


def alarm_marks(kinds: Sequence[story.AlarmKind]) -> tuple[Mark, ...]:
    """Alarms on the axis of the steps: the first of each kind, others as far as there is room."""
    first, others = [], []
    for kind in kinds:
        text = f"{kind.code} {kind.meaning.title}"
        raised = [
            Mark(since, step, kind.number, text)
            for since, step in zip(kind.since, kind.steps, strict=True)
        ]
        first.append(raised[0])
        others += raised[1:]
    room = max(0, MOST_MARKS - len(first))
    every = max(1, -(-len(others) // room)) if room else len(others) + 1
    return (*first, *others[::every])


# ---- the parts ----


def _top(run: Run, series: SeriesTable, parts: PageParts, now: float | None) -> list[Content]:
    found = story.verdict(run, now)
    said = element(
        "div",
        element("span", _SIGNS[found.tone], class_="sign", aria_hidden="true"),
        element("div", element("strong", found.headline), element("p", found.sentence)),
        class_=f"verdict {found.tone}",
        role="status",
    )
    shown = [
        element(
            "div",
            element("dt", phrase(figure.label)),
            element("dd", figure.value),
            element("dd", _before(figure), class_="before"),
        )
        for figure in story.figures(series)
    ]
    return [
        element("p", story.method(run), class_="kicker"),
        element("h1", run_title(run)),
        parts.keep("lead", element("p", _lead(run, now), class_="lead")),
        parts.keep("verdict", said),
        parts.keep("figures", element("dl", shown, class_="figures") if shown else None),
    ]


def _before(figure: story.Figure) -> str:
    before = phrase("from {before}", before=figure.before) if figure.before else ""
    told = [before, phrase(figure.set_name)]
    return ", ".join(one for one in told if one)


def _lead(run: Run, now: float | None) -> str:
    pairs = run.facts.get("step_pairs")
    told = [
        model_name(run),
        story.state_in_words(run, now),
        story.duration(run),
        phrase("{pairs} pairs a step", pairs=f"{pairs:,}") if isinstance(pairs, int) else "",
    ]
    return " · ".join(one for one in told if one)


def model_name(run: Run) -> str:
    """The name of the model that was trained, without its folder; "" where it is not known."""
    merged = run.facts.get("merged")
    if isinstance(merged, Mapping):  # an old adapter, beneath the new one
        return " + ".join(Path(str(one)).name for one in (merged["base"], *merged["adapters"]))
    model = run.facts.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return Path(str(name)).name if name else ""


def _alarms(kinds: Sequence[story.AlarmKind]) -> Content:
    first, others = ([_alarm(kind) for kind in some] for some in (kinds[:SHOWN], kinds[SHOWN:]))
    rest = element("ol", others, class_="alarms")
    return [
        element("ol", first, class_="alarms"),
        fold(story.counted(len(others), "1 more kind", "{count} more kinds"), rest)
        if others
        else None,
    ]


def _alarm(kind: story.AlarmKind) -> Markup:
    began, raised = kind.since[0], kind.steps
    times = {"since": f"{began:,}", "step": f"{raised[0]:,}"}
    when = phrase("Began at step {since}; raised at step {step}.", **times)
    if len(raised) > 1:
        when = phrase(
            "Began at step {since}; raised at step {step}, {times} times up to step {last}.",
            **times,
            times=f"{len(raised):,}",
            last=f"{raised[-1]:,}",
        )
    return element(
        "li",
        element(
            "h3",
            element("span", str(kind.number), class_="number"),
            kind.meaning.title[:1].upper() + kind.meaning.title[1:],
            element("code", kind.code),
        ),
        element("p", when, class_="when"),
        element("p", kind.seen) if kind.seen else None,
        element("p", element("b", phrase("Why it matters. ")), kind.meaning.why),
        element("p", element("b", phrase("What to do. ")), kind.meaning.do),
        element("pre", kind.fix, tabindex="0") if kind.fix else None,
    )


def _trained(run: Run) -> list[Content]:
    return [formula_of(run.facts), option_tables(run.facts)]


def _data(data: Mapping[str, Any], lengths: Sequence[Markup]) -> list[Content]:
    if not data:
        return [_none(phrase("The run wrote no account of its data."))]
    unknown = _none(phrase("The lengths of its pairs were not written down."))
    return [audit(data), element("div", lengths, class_="charts") if lengths else unknown]


def chart_groups(charts: Sequence[tuple[bool, Markup]]) -> Content:
    """Charts that a reader wants, and the others folded.

    Args:
        charts: whether it is wanted, and the figure of each, in their order.
    """
    if not charts:
        return _none(phrase("Nothing was logged yet."))
    wanted, others = (
        [one for first, one in charts if first is is_first] for is_first in (True, False)
    )
    return [
        element(
            "p",
            phrase(
                "Drag over a chart to look closer, at all of them at once; the button with the "
                "arrow goes back. Of long lines the extremes are kept, so that no spike is lost."
            ),
            class_="hint",
        ),
        element("div", wanted, class_="charts"),
        fold(phrase("More curves"), element("div", others, class_="charts")) if others else None,
    ]


def _constraints(
    run: Run, series: SeriesTable, charts: Sequence[Markup], parts: PageParts
) -> list[Section]:
    if not run.facts.get("constraints"):
        return []
    content: list[Content] = [
        parts.keep("constraints", account(run.facts, series)),
        element("div", charts, class_="charts"),
    ]
    return [Section("constraints", phrase("Constraints"), content)]


def _movement(
    run: Run, heat: Chart | None, groups: Chart | None, parts: PageParts
) -> list[Content]:
    if heat is None and groups is None:
        return [_none(phrase("Nobody looked at how far the parameters moved."))]
    titles, rows, step = last_look(run.movement)
    charts = [
        chart_figure(chart, parts, wide=True) for chart in (heat, groups) if chart is not None
    ]
    label = phrase("Groups of parameters at step {step}", step=f"{step:,}")
    return [
        element("div", charts, class_="charts"),
        parts.keep(
            "last-look",
            element("h3", phrase("At step {step}", step=f"{step:,}"), class_="above"),
            table(titles, rows, label=label, class_="numbers"),
        ),
    ]


def _speed(
    run: Run, series: SeriesTable, charts: Sequence[Markup], parts: PageParts
) -> list[Content]:
    rows: list[tuple[str, str]] = []
    if story.duration(run):
        rows.append((phrase("run time"), story.duration(run)))
    for metric, label, summary in _SPEEDS:
        one = series.get((TRAINING, metric))
        known = [] if one is None else [value for value in one.values if isfinite(value)]
        if known:
            rows.append((phrase(label), number(summary(known))))
    return [
        parts.keep(
            "speed",
            table(["", ""], rows, label=phrase("Speed and memory"), class_="numbers")
            if rows
            else None,
        ),
        element("div", charts, class_="charts")
        if charts
        else _none(phrase("The run logged neither speed nor memory.")),
    ]


def _environment(run: Run) -> list[Content]:
    facts = run.facts
    rows: list[tuple[str, Content]] = []
    if facts.get("started"):
        rows.append((phrase("started"), story.moment(facts["started"])))
    for resume in facts.get("resumed") or ():
        at = {"step": f"{resume['step']:,}", "time": story.moment(resume["time"])}
        rows.append((phrase("taken up again"), phrase("at step {step}, {time}", **at)))
    if (facts.get("ended") or {}).get("time"):
        rows.append((phrase("ended"), story.moment(facts["ended"]["time"])))
    rows += _flat(facts.get("environment") or {})
    versions = facts.get("versions") or {}
    if versions:
        rows.append((phrase("versions"), ", ".join(f"{k} {v}" for k, v in versions.items())))
    if facts.get("command"):
        rows.append((phrase("command"), element("code", " ".join(map(str, facts["command"])))))
    others = {key: value for key, value in facts.items() if key not in _TOLD}
    return [
        table(["", ""], rows, label=phrase("Environment"))
        if rows
        else _none(phrase("The run wrote nothing about its environment.")),
        fold(
            phrase("Everything else in run.json"),
            element("pre", json.dumps(others, indent=2, ensure_ascii=False), tabindex="0"),
        )
        if others
        else None,
    ]


def _flat(facts: Mapping[str, Any], before: str = "") -> list[tuple[str, Content]]:
    rows: list[tuple[str, Content]] = []
    for key, value in facts.items():
        name = f"{before}{phrase(str(key).replace('_', ' '))}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}, ")
        elif isinstance(value, list) and value and not isinstance(value[0], Mapping | list):
            rows.append((name, ", ".join(map(str, value))))
        elif value not in (None, "", [], {}):
            rows.append((name, plain_json(value)))
    return rows


def _none(sentence: str) -> Markup:
    return element("p", sentence, class_="none")
