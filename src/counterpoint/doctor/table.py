"""The one list of what the doctor can find: code -> severity, title, why it hurts, what to do.

The second letter of a code is its severity: ``CP`` an error (the same code under which the rest
of Counterpoint refuses the same thing), ``CW`` a warning, ``CN`` a note. The first digit is the
subject, as in ``errors``: 1 options, 2 data, 3 tokenizer and model, 4 alarms while training
(``alarms``), 5 machine, 9 the doctor itself. Codes never change their meaning.

docs/diagnoses.md and docs/diagnoses.zh-CN.md are generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from counterpoint.doctor.chinese import CHINESE
from counterpoint.doctor.english import ENGLISH
from counterpoint.doctor.wrap import wrap

_SEVERITIES: dict[str, Literal["error", "warning", "note"]] = {
    "P": "error",
    "W": "warning",
    "N": "note",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a code means.

    Args:
        title: what is so, in a few words.
        why: what it does to a run.
        do: what to change.
    """

    title: str
    why: str
    do: str


TABLE: Mapping[str, Entry] = MappingProxyType({code: Entry(*ENGLISH[code]) for code in ENGLISH})
"""Every code that the doctor can report, in English."""

TABLE_ZH: Mapping[str, Entry] = MappingProxyType({code: Entry(*CHINESE[code]) for code in ENGLISH})
"""The same in Chinese."""


def severity_of(code: str) -> Literal["error", "warning", "note"]:
    """The severity that a code's second letter says."""
    return _SEVERITIES[code[1]]


def explain(code: str, width: int = 80) -> str:
    """A code's entry as a few lines of text.

    Args:
        code: a key of ``TABLE``.
        width: columns of a line.

    Raises:
        KeyError: for a code that is not in the table.
    """
    entry = TABLE[code]
    lines = [
        *wrap(f"{code} ({severity_of(code)}): {entry.title}", width),
        "",
        *wrap(entry.why, width, "why  ", " " * 5),
        *wrap(entry.do, width, "do   ", " " * 5),
    ]
    return "\n".join(lines) + "\n"
