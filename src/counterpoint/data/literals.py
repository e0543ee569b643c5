"""Lists, objects, texts and numbers that were written as text: as JSON, or as Python's literals.

Nothing is evaluated. Python's own reader builds a tree of a hundred times the text's size first;
this one goes through the text once, in time and memory that grow with its length.

1. Of Python, what ``repr`` writes of plain values: no sets, bytes, calls or sums, no two strings
   side by side.

Not here: whether text was meant as text (``csv_columns``).
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST_CHARACTERS = 4 * 2**20
"""Characters of a text that is read; of all texts of a row too: more than any model reads."""

MOST_NESTED = 64
"""Lists and objects that may be inside one another: a tool's schema has ten."""

_TOKEN = re.compile(
    r"""\s*+(?:
    (?P<mark>[\[\](){}:,])
    | (?P<text>'[^'\\\n]*+(?:\\.[^'\\\n]*+)*+' | "[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")
    | (?P<word>[\w.+-]++)
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]++(?P<part>\.[0-9]*+)?|(?P<only>\.[0-9]++))(?P<exp>e[+-]?[0-9]++)?", re.I
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.|\n)", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_ESCAPED |= {"a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""}
_NAMES = {"None": None, "True": True, "False": False}
_CLOSES = {"[": "]", "(": ")", "{": "}"}


class LiteralError(ValueError):
    """A text that is no literal, and why.

    Args:
        reason: what was seen and where.
        unjoined: whether two entries of a list have no comma between them, as in what numpy writes.
    """

    def __init__(self, reason: str, *, unjoined: bool = False) -> None:
        super().__init__(reason)
        self.unjoined = unjoined


def read_value(text: str) -> Any:
    """What a text says, as JSON or else as a Python literal.

    Args:
        text: beginning with a bracket or a brace, after any white space.

    Returns:
        A list or a dict.

    Raises:
        LiteralError: for any other text, and for one beyond this module's bounds.
    """
    start = text.lstrip()[:1]
    if not start or start not in "[{(":
        raise LiteralError("it does not begin with a bracket")
    if len(text) > MOST_CHARACTERS:
        raise LiteralError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise LiteralError(f"it is nested more than {MOST_NESTED} deep") from error
    except ValueError:
        return read_literal(text)


def read_literal(text: str) -> Any:
    """What a Python literal says.

    Args:
        text: at most ``MOST_CHARACTERS``.

    Returns:
        Strings, numbers, booleans and None, in lists and dicts; tuples are lists.

    Raises:
        LiteralError: for anything else.
    """
    if len(text) > MOST_CHARACTERS:
        raise LiteralError(f"it is longer than {MOST_CHARACTERS:,} characters")
    reader = _Reader(text)
    value = reader.value(0)
    if text[reader.place :].strip():
        raise reader.error("something follows its end")
    return value


class _Reader:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def value(self, depth: int) -> Any:
        if depth > MOST_NESTED:
            raise self.error(f"it is nested more than {MOST_NESTED} deep")
        token = self._next()
        if token["mark"] in ("[", "("):
            return self._entries(_CLOSES[token["mark"]], depth)
        if token["mark"] == "{":
            return self._fields(depth)
        if token["text"] is not None:
            return self._text(token["text"])
        if token["word"] is not None:
            return self._word(token["word"])
        raise self.error(f"{token['mark']!r} stands where a value should")

    def error(self, reason: str, *, unjoined: bool = False) -> LiteralError:
        return LiteralError(f"{reason}, at character {self.place}", unjoined=unjoined)

    def _next(self) -> re.Match[str]:
        token = _TOKEN.match(self.text, self.place)
        if token is None:
            raise self.error("it is cut off, or holds what is no literal")
        self.place = token.end()
        return token

    def _follows(self, mark: str) -> bool:
        """Whether a mark comes next; then it is read."""
        token = _TOKEN.match(self.text, self.place)
        if token is None or token["mark"] != mark:
            return False
        self.place = token.end()
        return True

    def _entries(self, end: str, depth: int) -> list[Any]:
        found: list[Any] = []
        joined = True
        while not self._follows(end):
            if not joined:
                raise self.error("there is no comma between two entries", unjoined=True)
            found.append(self.value(depth + 1))
            joined = self._follows(",")
        if end == ")" and len(found) == 1 and not joined:
            raise self.error("a value in parentheses is no list")
        return found

    def _fields(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        joined = True
        while not self._follows("}"):
            if not joined:
                raise self.error("there is no comma between two fields")
            name = self._next()["text"]
            if name is None or not self._follows(":"):
                raise self.error("an object's field is no text followed by a colon")
            found[self._text(name)] = self.value(depth + 1)
            joined = self._follows(",")
        return found

    def _text(self, quoted: str) -> str:
        inner = quoted[1:-1]
        return _ESCAPE.sub(self._character, inner) if "\\" in inner else inner

    def _character(self, found: re.Match[str]) -> str:
        escape = found[1]
        if escape in _ESCAPED:
            return _ESCAPED[escape]
        number = int(escape[1:], 16) if len(escape) > 1 else -1
        if not 0 <= number <= 0x10FFFF:
            raise self.error(f"{found[0]!r} is no character")
        return chr(number)

    def _word(self, word: str) -> Any:
        if word in _NAMES:
            return _NAMES[word]
        number = _NUMBER.fullmatch(word)
        if number is None:
            raise self.error(f"{word[:20]!r} is no value")
        try:
            broken = number["part"] or number["only"] or number["exp"]
            return float(word) if broken else int(word)
        except ValueError as error:  # thousands of digits
            raise self.error("a number is too long") from error
