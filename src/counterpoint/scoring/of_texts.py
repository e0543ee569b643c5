"""Scorers that look at a text and its reference alone: metrics, lengths, languages, columns.

Not here: what makes a metric repeatable (``evaluation.references``), how a language is found
(``doctor.off_target``).
"""

from __future__ import annotations

from counterpoint.doctor.off_target import check_identifier, known_language, language_told
from counterpoint.errors import ConfigError, DataError
from counterpoint.evaluation.references import sentence_metric
from counterpoint.evaluation.texts import exact_match
from counterpoint.scoring.entries import CandidateEntry
from counterpoint.scoring.scorer import OneByOne

LENGTHS = ("characters", "tokens", "reference")
ASKED_LANGUAGE = "target_lang"
"""Column with the language that a row is to be translated into, as ``train`` reads it."""


def against_reference(metric: str, bleu_tokenizer: str = "13a") -> OneByOne:
    """BLEU or chrF of each sentence; null without a reference, or where BLEU cannot judge it.

    Args:
        metric: of ``evaluation.references.METRICS``.
        bleu_tokenizer: of ``evaluation.references.BLEU_TOKENIZERS``.

    Raises:
        SetupError: CP502 without sacrebleu.
    """
    score, signature = sentence_metric(metric, bleu_tokenizer)

    def number(entry: CandidateEntry) -> float | None:
        reference = entry.reference or ""
        return score(entry.text, reference) if reference.strip() else None

    return OneByOne(number, {"signature": signature})


def exact() -> OneByOne:
    """Whether a text is its reference, as 1 or 0; null without one."""

    def number(entry: CandidateEntry) -> float | None:
        reference = entry.reference
        return None if reference is None else float(exact_match(entry.text, reference))

    return OneByOne(number)


def length_of_text(unit: str) -> OneByOne:
    """How long a text is.

    Args:
        unit: of ``LENGTHS``, or "" for characters: characters, white space around not counted; the
            column ``tokens``, null where there is none; or by how many characters it is shorter or
            longer than its reference, null without one.

    Raises:
        ConfigError: CP102 for another unit.
    """
    if unit and unit not in LENGTHS:
        raise ConfigError("CP102", f"length:{unit} is not one of {', '.join(LENGTHS)}.")

    def number(entry: CandidateEntry) -> float | None:
        characters = len(entry.text.strip())
        if unit == "tokens":
            return _number_in(entry, "tokens")
        if unit == "reference":
            if entry.reference is None:
                return None
            return float(abs(characters - len(entry.reference.strip())))
        return float(characters)

    return OneByOne(number)


def in_language(code: str) -> OneByOne:
    """Whether a text is in a language, as 1 or 0; null where it is too short to tell.

    Args:
        code: as models and data sets write it; "": the one in each row's ``target_lang``.

    Raises:
        SetupError: CP502 without py3langid.
        ConfigError: CP103 for a language that it does not know.
    """
    check_identifier()
    if code and known_language(code) is None:
        raise ConfigError("CP103", f"language:{code} is no language that can be told; try de.")

    def number(entry: CandidateEntry) -> float | None:
        asked = code or entry.row.get(ASKED_LANGUAGE)
        if not isinstance(asked, str) or not asked:
            raise DataError(
                "CP201",
                f"{entry.place} has no column {ASKED_LANGUAGE}. Name the language, as in "
                "language:de, or keep that column of the prompts.",
            )
        wanted, told = known_language(asked), language_told(entry.text)
        return None if wanted is None or told is None else float(told == wanted)

    return OneByOne(number, null_passes=True)


def of_column(name: str) -> OneByOne:
    """A number that each candidate has; null where it has none.

    Args:
        name: of the column.
    """
    return OneByOne(lambda entry: _number_in(entry, name))


def _number_in(entry: CandidateEntry, name: str) -> float | None:
    if name not in entry.row:
        there = ", ".join(entry.row)
        raise DataError("CP201", f"{entry.place} has no column {name}; it has {there}.")
    value = entry.row[name]
    if value is None or isinstance(value, bool | int | float):
        return None if value is None else float(value)
    raise DataError(
        "CP202",
        f"{entry.place}: {name} is of type {type(value).__name__}; expected a number, true, false "
        "or null.",
    )
