"""HTML that is safe by construction: text is escaped unless it was made here.

Whatever a run holds (prompts, option values, error messages) goes through ``element``, so that
none of it can become a tag, an attribute or a script.

Not here: how anything looks (``page.css``).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from counterpoint.visible import visible

_VOID = frozenset({"br", "hr", "meta", "link", "input", "col", "img"})


class Markup(str):
    """Text that is HTML already; only this module makes it out of other text."""

    __slots__ = ()


Content = str | Markup | None | Iterable["Content"]
"""What an element may hold: text, markup, nothing, or several of these."""


def element(tag: str, /, *content: Content, **attributes: Any) -> Markup:
    """One element.

    Args:
        tag: its name.
        content: text is escaped; None is left out; a list is each of its parts.
        attributes: a trailing underscore is dropped and others become dashes (``class_``,
            ``aria_label``); True stands alone, False, None and "" are left out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(content)}</{tag}>")


def join(content: Content) -> Markup:
    """Parts one after the other, text among them escaped."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(visible(content)))
    return Markup("".join(join(part) for part in content))


def table(
    head: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    label: str,
    class_: str = "",
    names: Sequence[str] = (),
) -> Markup:
    """A table whose first column names its rows.

    Args:
        head: titles of the columns; all of them "" for a table without titles.
        rows: cells, as many as there are titles; the first is the row's name.
        label: what the table is, for those who do not see it.
        class_: further classes.
        names: of the columns after the first, in plain text: the page may then stack the cells of
            a row where it is narrow, each beside its column's name.
    """
    of = [*names, *[""] * (len(head) - 1 - len(names))]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [_cell(cell, name) for cell, name in zip(row[1:], of, strict=True)],
        )
        for row in rows
    ]
    titles = [element("th", title, scope="col") for title in head]
    above = element("thead", element("tr", titles)) if any(head) else None
    classes = " ".join(filter(None, (class_, "stack" if names else "")))
    inner = element("table", above, element("tbody", body), class_=classes)
    # a wide table scrolls alone, not the page; by keyboard too
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)


def fold(summary: Content, *content: Content, open_: bool = False, **attributes: Any) -> Markup:
    """Something to unfold."""
    head = element("summary", summary)
    return element("details", head, content, open_=open_, **attributes)


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element.

    Raises:
        ValueError: for a number that is not finite, which JSON does not know.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def plain_json(value: Any) -> str:
    """Options and facts as people write them: JSON, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def raw(text: str) -> Markup:
    """Text of this package's own files, taken as HTML as it is."""
    return Markup(text)


def _cell(content: Content, name: str) -> Markup:
    """A cell of the column of that name; one that is a cell already stays what it is."""
    of = _attribute("data_of", name)
    if isinstance(content, Markup) and content.startswith("<td"):
        return Markup(f"<td{of}{content[3:]}")
    return Markup(f"<td{of}>{join(content)}</td>")


def _attribute(key: str, value: Any) -> str:
    name = key.removesuffix("_").replace("_", "-")
    if value is None or value is False or value == "":
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(visible(str(value)))}"'
