"""Tables in a notebook: what an object shows as the last line of a cell, through ``_repr_html_``.

A notebook's own style is for numbers; here text stands on the left and a wide table scrolls alone.
Whatever an object holds is escaped (``markup``).

Not here: what each object shows (its own module), a run's whole report (``report.inline``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from counterpoint.language import phrase
from counterpoint.markup import Content, element, fold, raw, table

LONGEST = 2000
"""Characters of a text in a cell; what is longer is cut, with its length."""

_STYLE = """<style>
.counterpoint .scroll { overflow-x: auto }
.counterpoint th, .counterpoint td { text-align: left; vertical-align: top; white-space: pre-wrap }
.counterpoint thead th { white-space: nowrap }
</style>"""


def notebook_html(title: Content, *content: Content) -> str:
    """What an object looks like in a notebook.

    Args:
        title: what it is, or how it stands, in a line.
        content: tables and paragraphs below it.
    """
    head = element("p", element("b", title))
    return element("div", raw(_STYLE), head, content, class_="counterpoint")


def rows_shown(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    label: str,
    most: int = 20,
    spoken: bool = True,
) -> Content:
    """A table of the first rows, and how many more there are; nothing where there is none.

    Args:
        head: titles of the columns, in English.
        rows: cells, as many as there are titles; None is an empty one, a number gets its commas.
        label: what the table is, for those who do not see it.
        most: rows that are shown at once; the rest, up to ten times as many, are folded.
        spoken: the titles are the page's own words, to be said in the language spoken.
    """
    titles = [phrase(title) for title in head] if spoken else list(head)
    kept = [[_cell(value) for value in row] for row in islice(rows, 10 * most + 1)]
    if not kept:
        return None
    beyond = len(kept) > 10 * most
    first, rest = kept[:most], kept[most : 10 * most]
    count = f"{len(rest):,}"
    more = phrase("{count} more, and others" if beyond else "{count} more", count=count)
    return [
        table(titles, first, label=label),
        fold(more, table(titles, rest, label=f"{label}: {more}")) if rest else None,
    ]


def _cell(value: object) -> Content:
    if value is None or isinstance(value, str):
        text = value or ""
    elif isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
    else:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"
    return text
