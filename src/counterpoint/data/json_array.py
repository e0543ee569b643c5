"""The entries of a JSON array, one at a time: no more of its text is held than the longest takes.

The text comes in blocks, cut anywhere. An entry is read by Python's own reader of JSON, which says
where it broke. Whether more text would help is seen from that place: at the end of what is held, or
within a string. Then so much is read that twice as much is held, so that no entry is tried often.

Not here: files, bytes and what else may break in them (``files``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_WHITE = re.compile(r"[ \t\n\r]*")
"""What may stand between the parts of a JSON text."""

LONGEST_WORD = 16
"""Characters that the longest part beside strings and numbers takes, and more: ``-Infinity``."""


class BrokenArray(ValueError):
    """A text that is no array.

    Args:
        line: where, from 1.
        text: what is wrong, without a full stop.
    """

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class LongEntry(BrokenArray):
    """An entry that goes on beyond what one may take."""


class _Text:
    """The text from where it was read to.

    Args:
        blocks: the whole text, in order.
        longest: characters of one value.
    """

    def __init__(self, blocks: Iterator[str], longest: int) -> None:
        self._blocks, self._longest = blocks, longest
        self._held, self._place, self._line = "", 0, 1
        self._reader = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is not white; empty at the end."""
        while True:
            white = _WHITE.match(self._held, self._place)
            assert white is not None  # it may be none
            self._place = white.end()
            if self._place < len(self._held) or not self._more():
                return self._held[self._place : self._place + 1]

    def skip(self, wanted: str, lacking: str = "Expecting value") -> None:
        """Go over a character.

        Args:
            wanted: the character.
            lacking: what to say where it is another.

        Raises:
            BrokenArray: where it is another.
        """
        if self.next() != wanted:
            raise self._broken(lacking, self._place)
        self._place += 1

    def value(self) -> Any:
        """The next value, of any kind.

        Raises:
            BrokenArray: where there is none; ``LongEntry`` where it takes too many characters.
            RecursionError: for one that is nested too deeply.
        """
        self.next()
        while True:
            try:
                found, end = self._reader.raw_decode(self._held, self._place)
            except json.JSONDecodeError as error:
                within = error.msg.startswith("Unterminated string")
                if not within and error.pos <= len(self._held) - LONGEST_WORD:
                    raise self._broken(error.msg, error.pos) from None
                if len(self._held) - self._place > self._longest:
                    raise LongEntry(self._line_at(self._place), "too long") from None
                place = error.pos - self._place
                if not self._more():
                    raise self._broken(error.msg, place, cut=within) from None
            except RecursionError:
                raise
            except ValueError as error:  # a number of thousands of digits
                raise self._broken(str(error), self._place) from None
            else:
                length = end - self._place
                # a number or a word may be the first part of a longer one
                whole = self._held[end - 1] in '"]}' or end <= len(self._held) - LONGEST_WORD
                if whole or not self._more():
                    self._place += length
                    return found

    def end(self) -> None:
        """Nothing may follow.

        Raises:
            BrokenArray: where something does.
        """
        if self.next():
            raise self._broken("Extra data", self._place)

    def _more(self) -> bool:
        """Read on until twice as much is held; whether there was more."""
        self._line, rest = self._line_at(self._place), self._held[self._place :]
        parts, wanted = [rest], max(1, len(rest))
        for block in self._blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        self._held, self._place = "".join(parts), 0
        return len(self._held) > len(rest)

    def _line_at(self, place: int) -> int:
        return self._line + self._held.count("\n", 0, place)

    def _broken(self, text: str, place: int, *, cut: bool = False) -> BrokenArray:
        """What to say of a place in what is held; ``cut``: whether the end of the file is why."""
        if cut or not self._held[place:].strip():
            text += "; the file ends there and may be cut"
        return BrokenArray(self._line_at(place), f"not JSON: {text}")


def entries(blocks: Iterator[str], longest: int) -> Iterator[Any]:
    """The entries of an array, in order.

    Args:
        blocks: its text, cut anywhere.
        longest: characters that one entry may take.

    Yields:
        Values of any kind.

    Raises:
        BrokenArray: where it breaks, after the entries before; ``LongEntry`` for one that goes on
            beyond ``longest``.
        RecursionError: for an entry that is nested too deeply.
    """
    text = _Text(blocks, longest)
    text.skip("[")
    if text.next() != "]":
        yield text.value()
        while text.next() == ",":
            text.skip(",")
            yield text.value()
    text.skip("]", "Expecting ',' delimiter")
    text.end()
