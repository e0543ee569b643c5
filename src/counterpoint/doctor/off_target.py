"""Completions in another language than the one that their row asks for.

A model of translation that learns from such rows learns to answer in the wrong language, the
classic failure of its kind. Which language a text is in says py3langid (Lui and Baldwin 2012, ACL
P12-3005), a small identifier without network or accelerator.

1. One text proves nothing. Only what the identifier is sure of counts, and only texts of some
   words; of these a share is looked at, against the mistakes that the identifier makes.
2. What cannot be told is counted as such: a language that it does not know, a short text.
3. Of a large set some rows are looked at, spread evenly: an identification takes about 0.1 ms.

Not here: codes (``data.language_codes``), how it is said (``of_languages``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from counterpoint.data.language_codes import counted_as, language_of
from counterpoint.doctor.sightings import Sightings
from counterpoint.doctor.signs import LOOKED_AT
from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing

SIDES = ("chosen", "rejected")

SURE = 0.9
"""Probability from which a language is taken for the text's. Of 7,935 English translations of TED
talks none was mistaken at it, and of 529 Chinese transcripts none."""

IDENTIFIED = 5_000
"""Rows of a set whose texts are identified."""

FEWEST_LETTERS, OF_IDEOGRAPH = 20, 2.5
"""Letters that a text needs before its language is said, and as how many of them a character of
Chinese, Japanese or Korean counts."""

NO_LANGUAGE = "zxx"
"""The identifier's code of numbers, markup and names."""

MISTAKEN, SIGMAS, FEWEST = 0.01, 3.0, 3
"""Share of mistakes that the identifier is allowed, the standard errors above it from which a share
is none of its mistakes, and the fewest texts that are said to be in another language."""


@dataclass(slots=True)
class IdentifiedSide:
    """What languages the completions of a side are in.

    Args:
        told: texts whose language is known, among those of which one is asked for.
        off: those that are in another one; the rows, and an example.
        found: how many texts are in which other language, by what was asked for and what it is.
    """

    told: int = 0
    off: Sightings = field(default_factory=Sightings)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def no_accident(self) -> bool:
        """Whether there are more texts in another language than an identifier mistakes."""
        mistaken = self.told * MISTAKEN
        return bool(self.off.count >= max(FEWEST, mistaken + SIGMAS * mistaken**0.5))


@dataclass(slots=True)
class Languages:
    """What languages completions are in, against those that their rows ask for.

    Args:
        every: every so many rows, one is looked at.
        asked: rows looked at that ask for some language.
        unknown: of these, those whose language the identifier does not know, by its code.
        missing: whether there is no identifier here.
    """

    every: int = 1
    asked: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    missing: bool = False
    chosen: IdentifiedSide = field(default_factory=IdentifiedSide)
    rejected: IdentifiedSide = field(default_factory=IdentifiedSide)

    def look(self, row: int, code: str | None, texts: tuple[str, str]) -> None:
        """Identify the completions of a row.

        Args:
            row: its number.
            code: of the language that it asks for; None for none.
            texts: chosen and rejected.
        """
        if not code or row % self.every:
            return
        self.asked += 1
        identifier = _identifier()
        if identifier is None:
            self.missing = True
            return
        wanted = language_of(code, identifier.labels)
        if wanted is None:
            self.unknown[code] += 1
            return
        for side, text in zip((self.chosen, self.rejected), texts, strict=True):
            found = _language(identifier, text)
            if found is None:
                continue
            side.told += 1
            if found != wanted:
                side.off.add(row)
                side.found[code, found] += 1

    def sides(self) -> Iterator[tuple[str, IdentifiedSide]]:
        """Both by name."""
        return zip(SIDES, (self.chosen, self.rejected), strict=True)


def looking_at(rows: int) -> Languages:
    """What will be known of a set.

    Args:
        rows: of the set.
    """
    return Languages(every=max(1, -(-rows // IDENTIFIED)))


def check_identifier() -> None:
    """Refuse to begin without py3langid.

    Raises:
        SetupError: CP502, with how to install it.
    """
    if _identifier() is None:
        raise SetupError(
            "CP502",
            "to tell a language needs the package py3langid, which is not installed: "
            + installing(EXTRAS["translation"]),
        )


def known_language(code: str) -> str | None:
    """What a language counts as; None for one that the identifier does not know.

    Args:
        code: as a model or a data set writes it.
    """
    return language_of(code, _identifier().labels)


def language_told(text: str) -> str | None:
    """What a text is in, as ``known_language`` spells it.

    Args:
        text: of any length.

    Returns:
        None where it is too short, or nothing sure is known of it.
    """
    return _language(_identifier(), text)


@cache
def _identifier() -> Any:
    """py3langid with probabilities; None where it is not installed. It takes a second to read."""
    if find_spec("py3langid") is None:
        return None
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _language(identifier: Any, text: str) -> str | None:
    """What a text is in; None where it is too short, or nothing sure is known of it."""
    text = text[:LOOKED_AT]
    letters = sum(OF_IDEOGRAPH if one >= "\u2e80" else 1 for one in text if one.isalpha())
    if letters < FEWEST_LETTERS:
        return None
    shares: Counter[str] = Counter()
    for language, probability in identifier.rank(text):
        shares[counted_as(language)] += probability
    ((best, share),) = shares.most_common(1)
    return best if share >= SURE and best != NO_LANGUAGE else None
