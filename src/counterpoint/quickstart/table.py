"""The quickstart's numbers as text: how many answers are right, and a few of them.

Not here: where the numbers come from (``run``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

from counterpoint.language import phrase
from counterpoint.quickstart.tags import RIGHT, characters_right, mix_ups_in
from counterpoint.quickstart.task import PERFECT, english, flaws_in
from counterpoint.wrap import columns, padded

EXAMPLES = 5
EXAMPLES_BELOW = 10_000
"""Longer numbers would not fit on a line."""
TEXT_WIDTH = 46
"""Columns of a translation; every reference below ``EXAMPLES_BELOW`` fits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How well a model translates or reads.

    Args:
        exact: share of the numbers spelt exactly right, or of the codes read so, in [0, 1].
        number: share of the right number or code, whatever its known flaws, in [exact, 1].
        characters: mean share of the characters of a code that are right; None of numbers.
    """

    exact: float
    number: float
    characters: float | None = None


def judge_translations(numbers: Sequence[int], texts: Sequence[str]) -> Outcome:
    """Compare translations with the right spellings.

    Args:
        numbers: at least one.
        texts: the translation of each.
    """
    found = [flaws_in(number, text) for number, text in zip(numbers, texts, strict=True)]
    exact = sum(flaws == PERFECT for flaws in found)
    known = sum(flaws is not None for flaws in found)
    return Outcome(exact / len(found), known / len(found))


def judge_readings(codes: Sequence[str], texts: Sequence[str]) -> Outcome:
    """Compare transcriptions with the right codes.

    Args:
        codes: at least one.
        texts: the transcription of each.
    """
    both = list(zip(codes, texts, strict=True))
    found = [mix_ups_in(code, text) for code, text in both]
    return Outcome(
        mean(float(one == RIGHT) for one in found),
        mean(float(one is not None) for one in found),
        mean(characters_right(code, text) for code, text in both),
    )


def outcome_table(rows: Mapping[str, Outcome], perfect_chosen: float) -> list[str]:
    """One line for the references, one for each model.

    Args:
        rows: what was tried -> how well it does.
        perfect_chosen: share of the chosen references without a flaw, in [0, 1].
    """
    shares = {phrase("perfect among the chosen references"): [perfect_chosen]}
    shares |= {name: [outcome.exact, outcome.number] for name, outcome in rows.items()}
    return _table(("exact match", "right number"), shares)


def reading_table(rows: Mapping[str, Outcome]) -> list[str]:
    """One line for each model, and for the references as if they were one's.

    Args:
        rows: what was tried -> how well it does, characters included.
    """
    shares = {name: (outcome.exact, outcome.characters or 0.0) for name, outcome in rows.items()}
    return _table(("exact match", "characters"), shares)


def _table(heads: Sequence[str], rows: Mapping[str, Sequence[float]]) -> list[str]:
    first = " " * 40 + "".join(_to_the_right(phrase(name)) for name in heads)
    lines = ["".join(f"{share:>16.1%}" for share in shares) for shares in rows.values()]
    return [first, *(padded(name, 40) + line for name, line in zip(rows, lines, strict=True))]


def _to_the_right(text: str) -> str:
    return " " * (16 - columns(text)) + text


def examples(numbers: Sequence[int], translations: Mapping[str, Sequence[str]]) -> list[str]:
    """The first few short numbers, each with every model's translation and its verdict.

    Args:
        numbers: what was translated.
        translations: who translated -> the translation of each number.
    """
    lines: list[str] = []
    shown = [place for place, number in enumerate(numbers) if number < EXAMPLES_BELOW][:EXAMPLES]
    for place in shown:
        number = numbers[place]
        lines.append(f"{number:,}: {english(number)}")
        lines += _answers(translations, place, partial(_verdict, number))
    return lines


def reading_examples(codes: Sequence[str], readings: Mapping[str, Sequence[str]]) -> list[str]:
    """The first few codes, each with every model's transcription and its verdict.

    Args:
        codes: what was read.
        readings: who read -> the transcription of each code.
    """
    lines: list[str] = []
    for place, code in enumerate(codes[:EXAMPLES]):
        lines.append(code)
        lines += _answers(readings, place, partial(_verdict_on_code, code))
    return lines


def _answers(
    texts: Mapping[str, Sequence[str]], place: int, verdict: Callable[[str], str]
) -> list[str]:
    lines = []
    for name, of_model in texts.items():
        text = of_model[place]
        cut = text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
        lines.append(f"  {padded(phrase(name), 11)} {cut:<{TEXT_WIDTH}} {verdict(text)}")
    return lines


def _verdict(number: int, text: str) -> str:
    flaws = flaws_in(number, text)
    return phrase("another number") if flaws is None else _counted(len(flaws))


def _verdict_on_code(code: str, text: str) -> str:
    mix_ups = mix_ups_in(code, text)
    return phrase("another code") if mix_ups is None else _counted(len(mix_ups))


def _counted(flaws: int) -> str:
    if flaws == 1:
        return phrase("1 flaw")
    return phrase("{count} flaws", count=flaws) if flaws else phrase("right")
