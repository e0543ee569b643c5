"""Secrets stay out of everything that a run writes or says.

Text is a secret where it is the value of an environment variable or an option that is called one,
where it has the form of a key, and where it stands in an address as user and password or as a
parameter that is called a secret. Three asterisks take its place.

Not here: who writes and says things (``runlog``, ``cli.manners``), and keys in training data
(``doctor.signs``).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

SHORTEST = 8
"""Characters from which a value that is called a secret is one wherever it turns up."""

_WORDS = ("token", "key", "secret", "password", "passwd", "passphrase", "apikey")

_KEYS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|"
    r"\bgithub_pat_\w{30,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{20,}|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?",
    re.DOTALL,
)
"""Of Hugging Face, OpenAI and others, GitHub, AWS, Slack, and PEM."""

_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^\s/@\"'<>]+@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&][\w.-]*(?:token|key|secret|password|signature|sig|credential)[\w.-]*=)[^&\s\"'<>]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bBearer\s+)[^\s\"']{8,}", re.IGNORECASE)

_kept: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether the value of an option or variable of this name is nobody's business."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in words for word in _WORDS)


def keep_secrets(value: Any) -> None:
    """From now on mask each text that is called a secret, wherever it turns up.

    Args:
        value: of options, by name at any depth; text below ``SHORTEST`` is not told from a word.
    """
    if not isinstance(value, Mapping):
        return
    for name, part in value.items():
        if isinstance(part, str) and len(part) >= SHORTEST and is_secret(str(name)):
            _kept.add(part)
        keep_secrets(part)


class Mask:
    """What is secret at this moment; the environment is read once."""

    def __init__(self) -> None:
        """Collect the secrets."""
        values = sorted({form for value in _secrets() for form in _forms(value)}, key=len)
        # a secret may be a part of another one
        self._values = re.compile("|".join(map(re.escape, reversed(values)))) if values else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        text = _USER.sub(rf"\1{MASK}@", _KEYS.sub(MASK, text))
        return _BEARER.sub(rf"\1{MASK}", _PARAMETER.sub(rf"\1{MASK}", text))

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
    """Takes the secrets out of a log record, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, masked."""
        mask = Mask()
        record.msg, record.args = mask.text(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = mask.text(record.exc_text)
        return True


def _secrets() -> Iterator[str]:
    yield from _kept
    for name, value in os.environ.items():
        # a path that is there names the place of a secret, and of much else
        if len(value) >= SHORTEST and is_secret(name) and not os.path.exists(value):
            yield value


def _forms(value: str) -> set[str]:
    """A secret as it is, and as messages, JSON and addresses quote it."""
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
