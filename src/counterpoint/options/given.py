"""Values as the user wrote them, before anything knows which type they should have.

A flag and a line of YAML arrive here in the same form, so that one table of rules (``coerce``)
reads both: ``1e-6`` is a number and ``no`` is a word wherever they stand.

Not here: reading files (``yaml_file``), flags (``arguments``), or types (``coerce``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from counterpoint.masking import masked

SECRET = ("hub_token",)
"""Options whose value no message may repeat."""

_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MOST_DIGITS = 1000
"""Of a whole number; beyond, what looks like one is text, which no option takes for a number."""

_NULL = ("", "~", "null", "Null", "NULL")
_TRUE = ("true", "True", "TRUE")
_FALSE = ("false", "False", "FALSE")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One word or number as written.

    Args:
        text: the characters, without their quotes.
        quoted: whether quotes said that it is text and nothing else.
    """

    text: str
    quoted: bool = False


Given: TypeAlias = Scalar | list[Any] | dict[str, Any]
"""A scalar, or a list or mapping of what is given. (Of ``Given``; Python cannot check that.)"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One option as given.

    Args:
        name: the option's name, with underscores.
        given: its value as written.
        where: what a message calls it, ``--beta`` or ``run.yaml line 7: beta``.
        items: the same of each item, where a file gives a list.
    """

    name: str
    given: Given
    where: str
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Place and value, as an error message quotes them."""
        if self.name in SECRET:
            return f"{self.where} (value withheld)"
        return f"{self.where}={show_given(self.given)}"


def as_python(given: Given) -> Any:
    """What is given, as Python sees it where no option says which type it wants.

    YAML 1.2's rules: null, true, false and numbers are what they look like, all else is text.
    (YAML 1.1 reads ``no`` as false and ``1e-6`` as text.)
    """
    if isinstance(given, dict):
        return {key: as_python(value) for key, value in given.items()}
    if isinstance(given, list):
        return [as_python(item) for item in given]
    if given.quoted:
        return given.text
    return _plain_word(given.text)


def _plain_word(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _TRUE + _FALSE:
        return text in _TRUE
    if len(text) > _MOST_DIGITS:
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def show_given(given: Given, longest: int = 60) -> str:
    """What is given, on one line and not longer than ``longest`` characters."""
    value = given.text if isinstance(given, Scalar) else as_python(given)
    # before it is cut: half of a secret is not known for one
    text = masked(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
