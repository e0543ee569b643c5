"""CSV holds text alone: which of a file's columns are texts, and which are lists written as text.

That is decided by a whole column, never by a cell. A column is read as lists where every filled
cell is one, of messages (or of what its name says: tools, pairs of history, candidates). Where most
cells are and one is not, the file is refused with that cell. Everything else is text.

Not here: rows and lines of the file (``files``), how such a text is read (``literals``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterpoint.data.candidates import LISTS, TEXTS
from counterpoint.data.cells import SPEAKERS, spells_messages
from counterpoint.data.formats import NUMBERS, READ
from counterpoint.data.literals import LiteralError, read_value
from counterpoint.data.marks import PICTURE_COLUMNS
from counterpoint.errors import DataError

MEANT = READ | {*LISTS, *TEXTS, "score"}
"""Columns in which a damaged cell matters; any other may hold what it will."""


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    names = ("role", "content") if "role" in value else ("from", "value")
    speaker, content = (value.get(name) for name in names)
    if not isinstance(speaker, str):
        return False
    return isinstance(content, str | list) or (content is None and "tool_calls" in value)


def _speaks(message: Mapping[str, Any]) -> bool:
    return message.get("role", message.get("from")) in SPEAKERS


def _are_messages(value: Any) -> bool:
    turns = [value] if isinstance(value, dict) else value
    return bool(turns) and all(map(_is_message, turns)) and any(map(_speaks, turns))


def _is_list_of(inner: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(inner, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _begins_as_value(text: str) -> bool:
    return text.lstrip()[:1] in ("[", "{", "(")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the cells of a column may stand for.

    Args:
        holds: whether a value is of the kind.
        looks: whether a text looks like one, well written or not.
        what: the kind in words.
    """

    holds: Callable[[Any], bool]
    looks: Callable[[str], bool]
    what: str


_MESSAGES = _Kind(_are_messages, spells_messages, "messages")
_KINDS: Mapping[str, _Kind] = {
    name: _Kind(holds, _begins_as_value, what)
    for names, holds, what in (
        (("tools",), lambda value: isinstance(value, list | dict), "a list of tools"),
        (("chat_template_kwargs",), lambda value: isinstance(value, dict), "an object"),
        (("output",), _is_pair, "a list of two answers"),
        (("history",), _is_list_of(_is_pair), "a list of questions and answers"),
        (PICTURE_COLUMNS, _is_list_of(lambda one: isinstance(one, str)), "a list of paths"),
        (LISTS, _is_list_of(lambda _: True), "a list"),
        (("score",), _is_list_of(_is_number), "a list of numbers"),
    )
    for name in names
}
"""Columns that may hold other lists than messages."""


@dataclass(frozen=True, slots=True)
class _Odd:
    """A cell unlike the others of its column."""

    row: int
    line: int | None
    reason: str
    unjoined: bool = False


@dataclass
class _Column:
    """What was seen of a column.

    Args:
        name: in the header.
        filled: cells that are not blank.
        alike: those that look like a value of the column's kind.
        read: those of them that are one.
        broken: the first of them that is none.
        text: the first cell that does not look like one.
    """

    name: str
    filled: int = 0
    alike: int = 0
    read: int = 0
    broken: _Odd | None = None
    text: _Odd | None = None
    kind: _Kind = field(init=False)

    def __post_init__(self) -> None:
        self.kind = _KINDS.get(self.name, _MESSAGES)

    def look(self, cell: str, row: int, line: int | None) -> None:
        if not cell.strip():
            return
        self.filled += 1
        if not self.kind.looks(cell):
            self.text = self.text or _Odd(row, line, "it is plain text")
            return
        self.alike += 1
        reason, unjoined = f"it is not {self.kind.what}", False
        try:
            if self.kind.holds(read_value(cell)):
                self.read += 1
                return
        except LiteralError as error:
            reason, unjoined = str(error), error.unjoined
        # the first; but that numpy wrote a cell explains all others
        if self.broken is None or unjoined > self.broken.unjoined:
            self.broken = _Odd(row, line, reason, unjoined)

    def reader(self, source: object) -> Callable[[str], Any]:
        if self.name in NUMBERS:
            return _number
        if 2 * self.alike <= self.filled:
            return str
        odd = self.broken or self.text
        if odd is not None and self.name in MEANT:
            self._refuse(source, odd)
        return str if odd is not None else read_list

    def _refuse(self, source: object, odd: _Odd) -> None:
        line = "" if odd.line is None else f" (line {odd.line})"
        where = f"{source}, row {odd.row}{line}, field {self.name}"
        if odd.unjoined:
            raise DataError(
                "CP224",
                f"{where}: {odd.reason}. That is how numpy writes an array, and no reader can "
                "tell where its entries end. Write JSON lines instead of CSV "
                "(DataFrame.to_json(orient='records', lines=True)), or turn arrays into lists with "
                ".tolist() first.",
            )
        raise DataError(
            "CP223",
            f"{where}: {self.read:,} of the column's {self.filled:,} filled cells are "
            f"{self.kind.what} and this one cannot be read so: {odd.reason}. Repair the cell; a "
            "column is all text or all lists.",
        )


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell or None


def read_list(cell: str) -> Any:
    """What a cell of a column of lists says; None where it is blank."""
    return read_value(cell) if cell.strip() else None


class CsvColumns:
    """The columns of one file, looked at cell by cell and then read.

    Args:
        names: as in the header.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._columns = [_Column(name) for name in names]

    def look(self, cells: Sequence[str], row: int, line: int | None = None) -> None:
        """Take note of a row.

        Args:
            cells: one a column.
            row: the row's number, from 0.
            line: the line on which it ends; None where there are no lines.
        """
        for column, cell in zip(self._columns, cells, strict=True):
            column.look(cell, row, line)

    def readers(self, source: object) -> dict[str, Callable[[str], Any]]:
        """What reads the cells of each column, once all of them were looked at.

        Args:
            source: the file, or the name of the set, for messages.

        Raises:
            DataError: CP223 where a cell is unlike the rest of its column, CP224 where numpy
                wrote it.
        """
        return {column.name: column.reader(source) for column in self._columns}
