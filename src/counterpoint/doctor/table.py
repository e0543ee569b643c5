"""The one list of what the doctor can find: code -> severity, title, why it hurts, what to do.

The second letter of a code is its severity: ``CP`` an error (the same code under which the rest
of Counterpoint refuses the same thing), ``CW`` a warning, ``CN`` a note. The first digit is the
subject, as in ``errors``: 1 options, 2 data, 3 tokenizer and model, 4 alarms while training
(``alarms``), 5 machine, 9 the doctor itself. Codes never change their meaning.

The texts are files of ``language``: ``en/doctor-*.toml`` and ``zh/doctor-*.toml``.
docs/diagnoses.md and docs/diagnoses.zh-CN.md are generated from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from counterpoint.errors import CODES
from counterpoint.invocation import runnable
from counterpoint.language import Language, phrase, speaking, spoken
from counterpoint.language.texts import error_meanings, meanings
from counterpoint.wrap import columns, wrap

_SEVERITIES: dict[str, Literal["error", "warning", "note"]] = {
    "P": "error",
    "W": "warning",
    "N": "note",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a code means.

    Args:
        title: what is so, in a few words.
        why: what it does to a run.
        do: what to change.
    """

    title: str
    why: str
    do: str


class _Table(Mapping[str, Diagnosis]):
    """The entries of a language, read from its files when one is first asked for."""

    def __init__(self, language: Language) -> None:
        self._language = language

    @cached_property
    def _entries(self) -> dict[str, Diagnosis]:
        return {code: Diagnosis(**texts) for code, texts in meanings(self._language).items()}

    def __getitem__(self, code: str) -> Diagnosis:
        return self._entries[code]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


TABLE: Mapping[str, Diagnosis] = _Table("en")
"""Every code that the doctor can report, in English."""

TABLE_ZH: Mapping[str, Diagnosis] = _Table("zh")
"""The same in Chinese."""


def meaning(code: str) -> Diagnosis:
    """What a code means, in the language spoken.

    Args:
        code: a key of ``TABLE``, or of ``errors.CODES``: what ends a run before its first step may
            be any error.

    Raises:
        KeyError: for a code that is neither.
    """
    chinese = spoken() == "zh"
    table = TABLE_ZH if chinese else TABLE
    if code in table:
        return table[code]
    texts = {"title": CODES[code], **(error_meanings()[code] if chinese else {})}
    return Diagnosis(
        texts["title"],
        phrase("The run would end with this error."),
        texts.get("do", "Do what the message says."),
    )


def meaning_in_english(code: str) -> Diagnosis:
    """The same in English, for machines.

    Raises:
        KeyError: for a code that is neither.
    """
    with speaking("en"):
        return meaning(code)


def error_in_words(code: str, message: str) -> str:
    """An error's line: its code first, then what was seen, and in Chinese what that is about.

    A message is English, for it names what libraries and files call things.

    Args:
        code: a key of ``errors.CODES``.
        message: without its code.
    """
    if spoken() != "zh":
        return f"{code} {message}"
    texts = meanings("zh").get(code) or error_meanings()[code]
    return f"{code} {texts['title']}。{message} {phrase('What to do: {do}', do=texts['do'])}"


def severity_of(code: str) -> Literal["error", "warning", "note"]:
    """The severity that a code's second letter says."""
    return _SEVERITIES[code[1]]


def explain(code: str, width: int = 80) -> str:
    """A code's entry as a few lines of text.

    Args:
        code: as for ``meaning``.
        width: columns of a line.

    Raises:
        KeyError: for a code that is not in the table.
    """
    entry = meaning(code)
    why, do = (f"{phrase(word):<3}  " for word in ("why", "do"))
    lines = [
        *wrap(f"{code} ({phrase(severity_of(code))}): {entry.title}", width),
        "",
        *wrap(entry.why, width, why, " " * columns(why)),
        *wrap(runnable(entry.do), width, do, " " * columns(do)),
    ]
    return "\n".join(lines) + "\n"
