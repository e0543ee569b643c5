"""The page of a sweep: every trial with its setting and result, then the best runs side by side.

Not here: how runs are compared (``report.comparison``) and drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from counterpoint.language import phrase
from counterpoint.markup import Content, element, table
from counterpoint.report.charts import number
from counterpoint.report.comparison import comparison_page
from counterpoint.report.drawing import draw
from counterpoint.report.page import Section, page_html
from counterpoint.runlog import read_run
from counterpoint.sweep.course import Course
from counterpoint.sweep.study import Trial

MOST_COMPARED = 8
"""Runs whose curves are laid over each other: the best ones."""


def ranked(trials: Sequence[Trial], more_is_better: bool) -> list[Trial]:
    """Trials, the best first, then those that are not over, then those that failed."""
    sign = -1 if more_is_better else 1

    def place(one: Trial) -> tuple[int, float, int]:
        if one.value is not None:
            return 0, sign * one.value, one.number
        return (2 if one.state == "failed" else 1), 0.0, one.number

    return sorted(trials, key=place)


def sweep_html(course: Course, trials: Sequence[Trial]) -> str:
    """The page as one HTML file.

    Args:
        course: of the sweep.
        trials: of the sweep; one of them is finished.

    Raises:
        SetupError: CP502 where Bokeh is not installed.
    """
    judge = course.judge
    order = ranked(trials, judge.more_is_better)
    done = [one for one in order if one.value is not None]
    runs = [read_run(course.run_folder(one)) for one in done[:MOST_COMPARED]]
    page = comparison_page(runs)
    top = [
        element("p", phrase("Sweep"), class_="kicker"),
        element(
            "h1",
            phrase("{count} trials, judged by {metric}", count=len(trials), metric=judge.metric),
        ),
        element("p", _summary(course, trials, done[0])),
    ]
    trials_section = Section("trials", phrase("Trials"), _trials(order, judge.metric))
    page = replace(
        page,
        title=f"{course.folder.name} · Counterpoint",
        top=top,
        sections=[trials_section, *page.sections],
    )
    return page_html(page, draw(page.charts, axis=phrase(page.axis)))


def _summary(course: Course, trials: Sequence[Trial], best: Trial) -> str:
    failed = sum(one.state == "failed" for one in trials)
    told = phrase(
        "The best is trial {number}: {value}.",
        number=best.number,
        value=number(float(best.value or 0.0)),
    )
    if not failed:
        return told
    return f"{told} {phrase('Failed: {count}.', count=failed)}"


def _trials(order: Sequence[Trial], metric: str) -> Content:
    names = list(order[0].point)
    head = [phrase("trial"), *(element("code", name) for name in names)]
    head += [element("code", metric), phrase("state")]
    rows = [
        [
            f"trial-{one.number:03d}",
            *(element("code", one.point[name]) for name in names),
            element("td", number(one.value), class_="best" if place == 0 else "")
            if one.value is not None
            else "–",
            phrase(one.state) + (f": {one.reason}" if one.reason else ""),
        ]
        for place, one in enumerate(order)
    ]
    columns = [*names, metric, phrase("state")]
    return table(head, rows, label=phrase("Trials"), class_="runs", names=columns)
