"""The page around the charts: one HTML file that asks nobody for anything.

Its policy names the hashes of its own scripts, so that no other script runs, whatever the run's
texts hold, and forbids every request; a page that follows a run may ask the server it came from.

Not here: what the page says (``run_report``, ``comparison``), how charts are drawn (``drawing``).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from counterpoint._version import __version__
from counterpoint.language import Language, phrase, spoken
from counterpoint.markup import Content, Markup, element, fold, join, raw, script_json
from counterpoint.report.charts import Chart, HeatMap, Histogram, LineChart, line_in_words, number
from counterpoint.report.columns import Mark
from counterpoint.report.drawing import Drawing, library, place_of
from counterpoint.report.palette import as_css

GENERATOR = f"Counterpoint {__version__}"
MARK_OF_OURS = '<meta name="generator" content="Counterpoint '
"""What every page of ours has, and no other file."""

_FOOTER = "Written by {generator}. The page asks no network for anything."
_NO_SCRIPT = "The charts need JavaScript; everything else can be read without."
_SAID_BY_SCRIPT = (
    "Light colours",
    "Dark colours",
    "the run cannot be read",
    "counterpoint watch has ended",
)
"""What ``page.js`` says, by the English that it holds."""

_TAGS: Mapping[Language, str] = {"en": "en", "zh": "zh-Hans"}
"""What a page calls its language."""

LIVE = "live.json"
"""Where a page that follows a run asks for news, beside itself."""


@dataclass(slots=True)
class PageParts:
    """Pieces of a page that change while a run goes on, by the ids of their elements.

    Args:
        content: of each.
    """

    content: dict[str, Markup] = field(default_factory=dict)

    def keep(self, name: str, *content: Content, **attributes: Any) -> Markup:
        """An element for a piece that may be replaced by a newer one."""
        self.content[f"part-{name}"] = join(content)
        return element("div", *content, id=f"part-{name}", **attributes)


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page.

    Args:
        key: its anchor.
        title: its heading.
        content: what is below it.
        short: for the list of parts; the title where it is "".
        folded: shown only when it is asked for.
        hint: what a reader may want of it while it is folded.
    """

    key: str
    title: str
    content: Content
    short: str = ""
    folded: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page before it is drawn.

    Args:
        title: of the window.
        top: heading and verdict.
        sections: the parts below.
        charts: in the order in which they stand on the page.
        marks: alarms on the axis of the steps.
        parts: pieces that may be replaced while a run goes on.
        axis: name of the axis of the steps.
    """

    title: str
    top: Content
    sections: Sequence[Section]
    charts: tuple[Chart, ...]
    marks: tuple[Mark, ...] = ()
    parts: Mapping[str, Markup] = field(default_factory=dict)
    axis: str = "step"


def page_html(page: Page, drawing: Drawing, *, live: Mapping[str, Any] | None = None) -> str:
    """The page as HTML.

    Args:
        page: what it says.
        drawing: of its charts.
        live: what the page needs to follow a run: "version" and "shape"; None for one that stays.
    """
    scripts = [library(), _file("page.js")]
    words = {english: phrase(english) for english in _SAID_BY_SCRIPT}
    data = {
        "document": drawing.document,
        "places": drawing.places,
        "live": live,
        "words": words,
    }
    links = [
        element("a", section.short or section.title, href=f"#{section.key}")
        for section in page.sections
    ]
    body = [
        element("a", phrase("To the report"), class_="skip", href="#main"),
        element("header", _top_bar(live is not None), class_="bar"),
        element(
            "main",
            page.top,
            element("nav", links, aria_label=phrase("Parts of this report"), class_="parts"),
            [_section(section) for section in page.sections],
            id="main",
        ),
        element("footer", phrase(_FOOTER, generator=GENERATOR)),
        element("noscript", element("p", phrase(_NO_SCRIPT))),
        element("script", raw(script_json(data)), type="application/json", id="charts"),
        [raw(f"<script>{script}</script>") for script in scripts],
    ]
    head = [
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content=_policy(scripts, live=live is not None),
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        raw(f'<meta name="generator" content="{GENERATOR}">'),
        element("meta", name="referrer", content="no-referrer"),
        element("title", page.title),
        element("link", rel="icon", href="data:,"),
        raw(f"<style>\n{as_css()}{_file('page.css')}</style>"),
    ]
    html = element("html", element("head", head), element("body", body), lang=_TAGS[spoken()])
    return f"<!doctype html>\n{html}\n"


def chart_figure(chart: Chart, parts: PageParts, *, wide: bool = False) -> Markup:
    """The place of a chart, with its title, its legend and its content in words.

    Args:
        chart: to be drawn there.
        parts: takes the words, which change with the data.
        wide: over the whole width of the page.
    """
    heading = f"title-{chart.key}"
    words = _in_words(chart)
    return element(
        "figure",
        element(
            "figcaption",
            element("h3", chart.title, id=heading),
            element("p", chart.unit, class_="unit") if chart.unit else None,
            _legend(chart),
            element("p", chart.note, class_="note") if chart.note else None,
            parts.keep(f"words-{chart.key}", [element("p", one) for one in words], class_="unseen"),
        ),
        element(
            "div",
            id=place_of(chart),
            class_="plot",
            style=f"--rows:{len(chart.rows)}" if isinstance(chart, HeatMap) else None,
        ),
        class_="chart wide" if wide else "chart",
        aria_labelledby=heading,
    )


def _in_words(chart: Chart) -> list[str]:
    if isinstance(chart, LineChart):
        return [line_in_words(line) for line in chart.lines]
    if isinstance(chart, HeatMap):
        most = max(chart.cells, key=lambda cell: cell.value)
        still = sorted({cell.row for cell in chart.cells if cell.value == 0})
        names = ", ".join(chart.rows[row] for row in still)
        return [
            phrase(
                "Greatest: {value}, {row}, steps {left} to {right}.",
                value=number(most.value),
                row=chart.rows[most.row],
                left=number(most.left),
                right=number(most.right),
            ),
            phrase("Did not move at some look: {rows}.", rows=names)
            if still
            else phrase("Every row moved at every look."),
        ]
    return [_bars_in_words(chart, place) for place in range(len(chart.bars))]


def _bars_in_words(chart: Histogram, place: int) -> str:
    bars = chart.bars[place]
    most = max(range(len(bars.counts)), key=lambda one: bars.counts[one])
    low, high = bars.edges[most], bars.edges[most + 1]
    return phrase(
        "{name}: from {first} to {last} {unit}, most often {low} to {high}.",
        name=bars.label,
        first=number(bars.edges[0]),
        last=number(bars.edges[-1]),
        unit=chart.unit,
        low=number(low),
        high=number(high),
    )


def _legend(chart: Chart) -> Markup | None:
    if isinstance(chart, HeatMap):
        return None
    keys = (
        [(line.key, line.label, line.role, line.dash) for line in chart.lines]
        if isinstance(chart, LineChart)
        else [(bars.key, bars.label, bars.role, "block") for bars in chart.bars]
    )
    if len(keys) < 2:
        return None
    buttons = [
        element(
            "button",
            element("span", class_=f"swatch {dash}", style=f"color:var(--{role})"),
            label,
            type="button",
            class_="key",
            data_line=key,
            aria_pressed="true",
        )
        for key, label, role, dash in keys
    ]
    return element("div", buttons, class_="legend", role="group", aria_label=phrase("Show or hide"))


def _section(section: Section) -> Markup:
    heading = f"{section.key}-title"
    title = element("h2", section.title, id=heading)
    hint = element("small", section.hint) if section.hint else None
    return element(
        "section",
        fold([title, hint], section.content, class_="part")
        if section.folded
        else [title, section.content],
        class_="folded" if section.folded else "",
        id=section.key,
        aria_labelledby=heading,
    )


def _top_bar(live: bool) -> list[Content]:
    return [
        element("span", "Counterpoint", class_="brand"),
        element("span", phrase("following"), id="live", class_="live", role="status")
        if live
        else None,
        element("button", phrase("Dark colours"), type="button", id="theme"),
    ]


def _policy(scripts: Sequence[str], *, live: bool) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    asked = "'self'" if live else "'none'"
    # the library writes its own styles, and its tools' icons are data
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {asked}; base-uri 'none'; "
        "form-action 'none'"
    )


def _file(name: str) -> str:
    text = resources.files("counterpoint.report").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")
