"""Tables of rows by their names, to which a row can be added from outside the package."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

Row = TypeVar("Row")


def add_row(
    table: dict[str, Any],
    row: Row,
    what: str,
    *,
    first: bool = False,
    reserved: Collection[str] = (),
) -> Row:
    """Add a row under its own name.

    Args:
        table: name -> row.
        row: has a ``name``.
        what: a message's words before the name: "a layout".
        first: put it before those that are there, where rows are asked in their order.
        reserved: names that mean something else.

    Returns:
        The row, so that who calls this can decorate a class.

    Raises:
        ValueError: for a name that is taken.
    """
    name: str = row.name  # type: ignore[attr-defined]
    if name in table or name in reserved:
        raise ValueError(f"there is {what} {name!r} already")
    others = dict(table) if first else {}
    table[name] = row
    for other in others:  # behind it, in their order; the table itself is in others' hands
        table[other] = table.pop(other)
    return row
