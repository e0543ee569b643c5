"""Secrets stay out of everything that a run writes or says.

Text is a secret where it is the value of an environment variable or an option that is called one,
where it has the form of a key, and where it stands in an address as user and password or as a
parameter that is called a secret. What such a value holds in its turn (the password of a database's
address, a key in JSON) is one too, wherever it turns up alone. Three asterisks take its place.

Not here: what is called a secret and what looks like one (``secret_signs``), who writes and says
things (``runlog``, ``console.manners``), and keys in training data (``doctor.signs``).
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

from counterpoint.secret_signs import MASK, addresses_masked, hidden_in, is_secret, is_worth_hiding
from counterpoint.visible import visible

__all__ = ["MASK", "Mask", "MaskingFilter", "is_secret", "keep_secrets", "masked"]

_WORD_LIKE = 8
"""Characters below which a secret is one only where it stands as a word of its own."""

_kept: set[str] = set()


def keep_secrets(value: Any) -> None:
    """From now on mask each text that is called a secret, wherever it turns up.

    Args:
        value: of options, by name at any depth; text too short or too common is not told from a
            word.
    """
    if isinstance(value, str):
        _kept.update(hidden_in(value))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if isinstance(part, str) and is_secret(str(name)) and is_worth_hiding(str(name), part):
                _kept.add(part)
            keep_secrets(part)
    elif isinstance(value, list | tuple):
        for part in value:
            keep_secrets(part)


class Mask:
    """What is secret at this moment; the environment is read once."""

    def __init__(self) -> None:
        values = sorted({form for value in _secrets() for form in _forms(value)}, key=len)
        # a secret may be a part of another one
        self._values = re.compile("|".join(map(_found, reversed(values)))) if values else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        return addresses_masked(text)

    def of(self, value: Any) -> Any:
        """A JSON-ready value without secrets at any depth; what is called one is left out.

        Numbers are not: a set of rows may be called a key, and its loss is none.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self.of(part)
                for key, part in value.items()
                if not (_holds_text(part) and is_secret(str(key))) or _is_tensors(str(key), part)
            }
        if isinstance(value, list | tuple):
            parts = (self.of(part) for part in value)
            return tuple(parts) if isinstance(value, tuple) else list(parts)
        return value

    def words(self, words: list[str]) -> list[str]:
        """A command line: also ``--hub_token x`` and ``--hub_token=x``, however short x is."""
        shown: list[str] = []
        hide_next = False
        for word in words:
            name, equals, _ = word.partition("=")
            secret = word.startswith("-") and is_secret(name.lstrip("-"))
            if hide_next and not word.startswith("-"):
                word = MASK
            elif secret and equals:
                word = f"{name}={MASK}"
            hide_next = secret and not equals
            shown.append(self.text(word))
        return shown


def _holds_text(part: Any) -> bool:
    return isinstance(part, str | list | tuple | Mapping)


def _is_tensors(name: str, part: Any) -> bool:
    """Whether these are numbers of a tensor: ``h.0.query_key_value.weight`` is no secret."""
    return "." in name and isinstance(part, Mapping)


def masked(text: str) -> str:
    """A text without the secrets of this moment."""
    return Mask().text(text)


class MaskingFilter(logging.Filter):
    """Takes secrets and control characters out of a log record, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, masked."""
        mask = Mask()
        record.msg, record.args = visible(mask.text(record.getMessage())), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = visible(mask.text(record.exc_text))
        return True


def _secrets() -> Iterator[str]:
    yield from _kept
    for name, value in os.environ.items():
        # a path that is there names the place of a secret, and of much else
        yield from _in_variable(name, value, is_secret(name) and not os.path.exists(value))


@lru_cache(maxsize=1024)
def _in_variable(name: str, value: str, is_one: bool) -> tuple[str, ...]:
    whole = (value,) if is_one and is_worth_hiding(name, value) else ()
    return (*whole, *hidden_in(value, named_one=is_one))


def _forms(value: str) -> set[str]:
    """A secret as it is, and as messages, JSON, addresses and pages quote it."""
    return {
        value,
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        html.escape(value),
        " ".join(value.split()),  # as a message on one line has it
    }


def _found(form: str) -> str:
    """A pattern of one form; the digits of percent signs may be of either case."""
    pattern = re.sub(r"%[0-9A-F]{2}", lambda code: f"(?i:{code[0]})", re.escape(form))
    return rf"(?<!\w){pattern}(?!\w)" if len(form) < _WORD_LIKE else pattern
