"""The language in which the command, the doctor, the report and the quickstart speak.

English is written where it is said; ``phrase`` looks it up in a catalogue and takes the English
itself where there is nothing. Codes, option names, metric names and whatever a machine reads stay
as they are in every language.

Not here: the files of texts (``texts``), the doctor's table of codes (``doctor.table``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from counterpoint.errors import ConfigError
from counterpoint.language.texts import phrases

Language = Literal["en", "zh"]

LANGUAGES: Mapping[str, Language] = {"en": "en", "english": "en", "zh": "zh", "chinese": "zh"}
"""What a user may call a language -> the language."""

VARIABLE = "COUNTERPOINT_LANGUAGE"
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
"""Variables that name the locale of messages; the first that is set counts, as POSIX has it."""

_chosen: list[Language] = []


def spoken() -> Language:
    """The language to speak: the one asked for, else the environment's, else English."""
    if _chosen:
        return _chosen[-1]
    named = os.environ.get(VARIABLE, "")
    if named:
        return _of_locale(named)
    return _of_locale(next((os.environ[name] for name in _LOCALE if os.environ.get(name)), ""))


def language_named(text: str) -> Language:
    """The language that a user's word names.

    Args:
        text: "en", "zh", or a locale such as "zh_CN.UTF-8".

    Raises:
        ConfigError: CP102 for a language that is not spoken.
    """
    word = text.lower().replace("-", "_").partition(".")[0]
    found = LANGUAGES.get(word) or LANGUAGES.get(word.partition("_")[0])
    if found is None:
        raise ConfigError("CP102", f"--language {text} should be one of en, zh.")
    return found


@contextmanager
def speaking(language: Language | None) -> Iterator[None]:
    """Speak a language within; None leaves it to the environment."""
    if language is None:
        yield
        return
    _chosen.append(language)
    try:
        yield
    finally:
        _chosen.pop()


def phrase(english: str, /, **values: Any) -> str:
    """A phrase in the language spoken.

    Args:
        english: with ``str.format`` fields for the values.
        values: by the names of the fields.
    """
    text = phrases().get(english, english) if spoken() == "zh" else english
    return text.format(**values) if values else text


def _of_locale(text: str) -> Language:
    try:
        return language_named(text)
    except ConfigError:
        return "en"
