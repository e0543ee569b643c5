"""The quickstart's task: English number words -> German, learnt from imperfect references.

    742: "seven hundred forty-two = " -> "siebenhundertzweiundvierzig"

A reference carries up to four systematic flaws, each present or absent on its own and, if
present, wherever in the number it can be. In a preference pair both sides are such references
and chosen has fewer flaws than rejected, yet is seldom perfect: what is right has to be learnt
from the differences, for hardly any text shows it whole.

Not here: the tokenizer and the base model (scripts/train_quickstart_base.py), and the run.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, islice

LIMIT = 1_000_000
"""Numbers are whole and in [0, LIMIT)."""
FLAW_RATE = 0.7
"""Probability that a reference carries a given flaw."""
HELD_OUT = 5
"""One number in so many, from 100 up, is kept for evaluation and never trained on."""
SEPARATOR = " = "


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH_SMALL = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
ENGLISH_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
GERMAN_SMALL = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
GERMAN_TENS = _words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")


class Flaw(StrEnum):
    """What a reference can have wrong; the value is how the run's table names it."""

    TENS_FIRST = "tens before units"
    NO_UND = "missing und"
    ENGLISH_AND = "English and"
    APART = "written apart"


Flaws = frozenset[Flaw]
PERFECT: Flaws = frozenset()


@dataclass(frozen=True, slots=True)
class Reference:
    """A German text for a number, and what is wrong with it.

    Args:
        number: in [0, ``LIMIT``).
        text: the spelling, ``german(number, flaws)``.
        flaws: the flaws that show in the text; one that the number has no place for is not here.
    """

    number: int
    text: str
    flaws: Flaws


@dataclass(frozen=True, slots=True)
class Pair:
    """Two references for one number.

    Args:
        chosen: the one with strictly fewer flaws.
        rejected: the other.
    """

    chosen: Reference
    rejected: Reference

    @property
    def row(self) -> dict[str, str]:
        """As a row to train on: ``{"prompt", "chosen", "rejected"}``."""
        return {
            "prompt": prompt(self.chosen.number),
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
        }

    @property
    def translation(self) -> dict[str, str]:
        """As a row for an encoder-decoder: ``{"source", "chosen", "rejected"}``."""
        return {
            "source": english(self.chosen.number),
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
        }


def english(number: int) -> str:
    """The number in American English words, without "and".

    Args:
        number: in [0, ``LIMIT``).
    """
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _english_below_1000(rest)
    words = _english_below_1000(thousands) + " thousand"
    return f"{words} {_english_below_1000(rest)}" if rest else words


def _english_below_1000(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{ENGLISH_SMALL[hundreds]} hundred"] if hundreds else []
    if rest >= 20:
        tens, unit = divmod(rest, 10)
        words.append(ENGLISH_TENS[tens - 2] + (f"-{ENGLISH_SMALL[unit]}" if unit else ""))
    elif rest or not hundreds:
        words.append(ENGLISH_SMALL[rest])
    return " ".join(words)


def german(number: int, flaws: Flaws = PERFECT) -> str:
    """The number in German, in one word; 100 is "einhundert" and 1,000 "eintausend".

    Args:
        number: in [0, ``LIMIT``).
        flaws: what to get wrong, wherever the number has a place for it.
    """
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _german_below_1000(rest, flaws)
    # "einhunderteintausend": the one before "tausend" loses its s, as it does before "hundert".
    head = _german_below_1000(thousands, flaws).removesuffix("s" if thousands % 100 == 1 else "")
    tail = [_german_below_1000(rest, flaws)] if rest else []
    return _join([f"{head}tausend", *tail], flaws)


def _german_below_1000(number: int, flaws: Flaws) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _german_below_100(rest, flaws)
    words = [f"{_stem(hundreds)}hundert"]
    if rest:
        words += ["and"] * (Flaw.ENGLISH_AND in flaws) + [_german_below_100(rest, flaws)]
    return _join(words, flaws)


def _join(words: list[str], flaws: Flaws) -> str:
    return (" " if Flaw.APART in flaws else "").join(words)


def _german_below_100(number: int, flaws: Flaws) -> str:
    if number < 20:
        return GERMAN_SMALL[number]
    tens, unit = divmod(number, 10)
    word = GERMAN_TENS[tens - 2]
    if not unit:
        return word
    parts = (word, _stem(unit)) if Flaw.TENS_FIRST in flaws else (_stem(unit), word)
    return ("" if Flaw.NO_UND in flaws else "und").join(parts)


def _stem(unit: int) -> str:
    return "ein" if unit == 1 else GERMAN_SMALL[unit]


def flaws_in(number: int, text: str) -> Flaws | None:
    """What is wrong with a translation: the fewest flaws that explain it.

    Args:
        number: in [0, ``LIMIT``).
        text: the translation to judge.

    Returns:
        The flaws, empty for the right spelling; None if no set of them gives this text, which
        is then the wrong number or no number.
    """
    for size in range(len(Flaw) + 1):
        for flaws in combinations(Flaw, size):
            if german(number, frozenset(flaws)) == text:
                return frozenset(flaws)
    return None


def prompt(number: int) -> str:
    """What the model reads before it writes the German, for example "forty-two = "."""
    return english(number) + SEPARATOR


def is_held_out(number: int) -> bool:
    """Whether a number is kept for evaluation; the base and the pairs never see it.

    A multiplicative hash, so that no digit or length decides.
    """
    return number >= 100 and (number * 2_654_435_761 % 2**32) * HELD_OUT < 2**32


def held_out_numbers(count: int, seed: int) -> list[int]:
    """Different numbers for evaluation; each length from 3 to 6 digits is equally likely.

    Args:
        count: at most 500; only 179 of the held-out numbers have three digits.
        seed: the same seed gives the same numbers.
    """
    numbers = _numbers(random.Random(f"held out {seed}"), shortest=3, held_out=True)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen.setdefault(next(numbers))
    return list(chosen)


def references(seed: int) -> Iterator[Reference]:
    """Endless references for numbers of 1 to 6 digits, none held out; what the base reads."""
    rng = random.Random(f"references {seed}")
    for number in _numbers(rng, shortest=1, held_out=False):
        yield _reference(rng, number)


def preference_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of references for numbers of 3 to 6 digits, none held out.

    Two references are drawn for a number; the one with fewer flaws is chosen. Where they have
    equally many, the number is passed over.

    Args:
        count: number of pairs.
        seed: the same seed gives the same pairs.
    """
    rng = random.Random(f"pairs {seed}")
    drawn = (_pair(rng, number) for number in _numbers(rng, shortest=3, held_out=False))
    return list(islice(filter(None, drawn), count))


def held_out_pairs(numbers: Iterable[int], seed: int) -> list[Pair]:
    """Pairs of references for held-out numbers, drawn as ``preference_pairs`` draws them.

    Args:
        numbers: each in [0, ``LIMIT``); one whose two references have equally many flaws is
            passed over.
        seed: the same seed gives the same pairs.
    """
    rng = random.Random(f"held-out pairs {seed}")
    return list(filter(None, (_pair(rng, number) for number in numbers)))


def _numbers(rng: random.Random, *, shortest: int, held_out: bool) -> Iterator[int]:
    # rng.random() alone is promised to give the same sequence in every version of Python.
    while True:
        digits = shortest + int(rng.random() * (7 - shortest))
        low = 10 ** (digits - 1) if digits > 1 else 0
        number = low + int(rng.random() * (10**digits - low))
        if is_held_out(number) == held_out:
            yield number


def _pair(rng: random.Random, number: int) -> Pair | None:
    drawn = [_reference(rng, number), _reference(rng, number)]
    better, worse = sorted(drawn, key=lambda reference: len(reference.flaws))
    return Pair(better, worse) if len(better.flaws) < len(worse.flaws) else None


def _reference(rng: random.Random, number: int) -> Reference:
    drawn = frozenset(flaw for flaw in Flaw if rng.random() < FLAW_RATE)
    text = german(number, drawn)
    return Reference(number, text, flaws_in(number, text) or PERFECT)
