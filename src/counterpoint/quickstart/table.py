"""The quickstart's numbers as text: how many translations are right, and a few of them.

Not here: where the numbers come from (``run``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterpoint.language import phrase
from counterpoint.quickstart.task import PERFECT, english, flaws_in
from counterpoint.wrap import columns, padded

EXAMPLES = 5
EXAMPLES_BELOW = 10_000
"""Longer numbers would not fit on a line."""
TEXT_WIDTH = 46
"""Columns of a translation; every reference below ``EXAMPLES_BELOW`` fits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How well a model translates.

    Args:
        exact: share of the numbers spelt exactly right, in [0, 1].
        number: share spelt as the right number, whatever its known flaws, in [exact, 1].
    """

    exact: float
    number: float


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


def outcome_table(rows: Mapping[str, Outcome], perfect_chosen: float) -> list[str]:
    """One line for the references, one for each model.

    Args:
        rows: what was tried -> how well it does.
        perfect_chosen: share of the chosen references without a flaw, in [0, 1].
    """
    heads = "".join(_to_the_right(phrase(name)) for name in ("exact match", "right number"))
    perfect = padded(phrase("perfect among the chosen references"), 40)
    lines = [f"{'':<40}{heads}", f"{perfect}{perfect_chosen:>16.1%}"]
    for name, outcome in rows.items():
        lines.append(f"{padded(name, 40)}{outcome.exact:>16.1%}{outcome.number:>16.1%}")
    return lines


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
        lines.append(f"{numbers[place]:,}: {english(numbers[place])}")
        for name, texts in translations.items():
            text = texts[place]
            cut = text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
            verdict = _verdict(numbers[place], text)
            lines.append(f"  {padded(phrase(name), 11)} {cut:<{TEXT_WIDTH}} {verdict}")
    return lines


def _verdict(number: int, text: str) -> str:
    flaws = flaws_in(number, text)
    if flaws is None:
        return phrase("another number")
    if len(flaws) == 1:
        return phrase("1 flaw")
    return phrase("{count} flaws", count=len(flaws)) if flaws else phrase("right")
