"""The page of a loop: what is worrying, then tables and curves over its rounds.

Not here: the numbers (``figures``, ``worries``), how charts are drawn (``report.drawing``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from counterpoint.doctor.findings import Finding
from counterpoint.evaluation.bootstrap import BootstrapEstimate
from counterpoint.language import phrase
from counterpoint.loop.figures import RoundFigures, ScoredTexts
from counterpoint.loop.stages import LoopCourse
from counterpoint.markup import Content, Markup, element, table
from counterpoint.report.charts import ChartLine, LineChart, number
from counterpoint.report.drawing import draw
from counterpoint.report.page import Page, PageParts, Section, chart_figure, page_html
from counterpoint.report.palette import SERIES

Value = BootstrapEstimate | float | None
Values = Mapping[str, Sequence[Value]]
"""Lines of a table or chart by their names: a value a round."""


def loop_html(
    course: LoopCourse, figures: Sequence[RoundFigures], findings: Sequence[Finding]
) -> str:
    """The page as one HTML file.

    Args:
        course: of the loop.
        figures: of its rounds, at least one.
        findings: what is worrying about them.

    Raises:
        SetupError: CP502 where Bokeh is not installed.
    """
    parts = PageParts()
    sections, charts = [], list[LineChart]()
    for key, title, hint, values in (
        ("held", "Answers to held-out prompts", "of each round's own model", _held(figures)),
        ("drawn", "Candidates", "of the model before each round", _drawn(figures)),
        ("evaluated", "Evaluation", "of each round's own model", _evaluated(figures)),
    ):
        if not any(value is not None for line in values.values() for value in line):
            continue
        curves = [
            _chart(f"{key}-{place}", *one, figures) for place, one in enumerate(values.items())
        ]
        drawn = [one for one in curves if one is not None]
        charts += drawn
        content = [
            element("p", phrase(hint), class_="hint"),
            _table(phrase(title), values, figures),
            element("div", [chart_figure(one, parts) for one in drawn], class_="charts"),
        ]
        sections.append(Section(key, phrase(title), content))
    page = Page(
        f"{course.folder.name} · Counterpoint",
        _top(course, figures, findings),
        sections,
        tuple(charts),
        parts=parts.content,
        axis="round",
    )
    return page_html(page, draw(page.charts, axis=phrase(page.axis)))


def _top(
    course: LoopCourse, figures: Sequence[RoundFigures], findings: Sequence[Finding]
) -> list[Content]:
    done, wanted = figures[-1].number, course.recipe.rounds
    told: Content = element("p", phrase("Nothing about them is worrying."))
    if findings:
        told = element(
            "ul", [element("li", element("code", one.code), f" {one.seen}") for one in findings]
        )
    return [
        element("p", phrase("Loop"), class_="kicker"),
        element("h1", phrase("{done} of {count} rounds", done=done, count=wanted)),
        element("p", element("code", str(course.recipe.model))),
        told,
    ]


def _of(
    figures: Sequence[RoundFigures],
    texts: Callable[[RoundFigures], ScoredTexts | None],
) -> dict[str, list[Value]]:
    """The lines of a kind of file."""
    every = [texts(one) for one in figures]
    names = list(dict.fromkeys(name for one in every if one is not None for name in one.scorers))

    def line(value: Callable[[ScoredTexts], Value]) -> list[Value]:
        return [None if one is None else value(one) for one in every]

    lines = {phrase("mean score"): line(lambda one: one.score)}
    if len(names) > 1:
        for name in names:
            lines[name] = line(lambda one, name=name: one.scorers.get(name))  # type: ignore[misc]
    lines[phrase("tokens of a text")] = line(lambda one: one.tokens)
    lines[phrase("share of unlike texts of a prompt")] = line(lambda one: one.distinct)
    lines[phrase("share of prompts with equal scores alone")] = line(lambda one: one.tied)
    if any(one is not None and one.vetoed for one in every):
        lines[phrase("share of texts with a veto or no score")] = line(lambda one: one.vetoed)
    return lines


def _held(figures: Sequence[RoundFigures]) -> Values:
    wins = {phrase("wins over the round before"): [one.wins for one in figures]}
    return {**wins, **_of(figures, lambda one: one.held)}


def _drawn(figures: Sequence[RoundFigures]) -> Values:
    return {**_of(figures, lambda one: one.drawn), phrase("pairs"): [one.pairs for one in figures]}


def _evaluated(figures: Sequence[RoundFigures]) -> Values:
    sets = list(dict.fromkeys(name for one in figures for name in one.accuracy))
    names = list(dict.fromkeys(name for one in figures for name in one.measures))
    return {
        **{
            phrase("prefers chosen, {name}", name=name): [one.accuracy.get(name) for one in figures]
            for name in sets
        },
        **{name: [one.measures.get(name) for one in figures] for name in names},
    }


def _table(label: str, values: Values, figures: Sequence[RoundFigures]) -> Markup:
    names = [phrase("round {number}", number=one.number) for one in figures]
    rows = [[name, *map(_cell, line)] for name, line in values.items()]
    return table(["", *names], rows, label=label, class_="numbers runs", names=names)


def _cell(value: Value) -> Content:
    if not isinstance(value, BootstrapEstimate):
        return number(value)
    within = f"{number(value.low)} – {number(value.high)}"
    return [number(value.value), " ", element("small", within)]


def _chart(
    key: str,
    name: str,
    line: Sequence[Value],
    figures: Sequence[RoundFigures],
) -> LineChart | None:
    """A line over the rounds that have it; None where that is no line."""
    known = [
        (one.number, value) for one, value in zip(figures, line, strict=True) if value is not None
    ]
    if len(known) < 2:
        return None
    exact = [one if isinstance(one, BootstrapEstimate) else None for _, one in known]
    middle = [one.value if isinstance(one, BootstrapEstimate) else float(one) for _, one in known]
    drawn = ChartLine(
        key=f"{key}/line",
        label=name,
        role=SERIES[0],
        x=tuple(float(n) for n, _ in known),
        y=tuple(middle),
        marks=True,
        low=tuple(one.low for one in exact if one),
        high=tuple(one.high for one in exact if one),
    )
    return LineChart(key, name, "", (drawn,))
