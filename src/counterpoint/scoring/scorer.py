"""A scorer, as everything else here sees it: candidates in, a number or null for each out.

Not here: which kinds there are (``kinds``), what they are asked for by (``asked``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.data.plain import plain
from counterpoint.errors import DataError
from counterpoint.scoring.entries import CandidateEntries, CandidateEntry


@dataclass(frozen=True, slots=True)
class ScoringWork:
    """What is to be scored.

    Args:
        entries: all candidates.
        first: the number of the first that is still to be scored.
        journal: a file that a scorer may keep beside the scores.
    """

    entries: CandidateEntries
    first: int
    journal: Path

    def rest(self) -> Iterator[CandidateEntry]:
        """Every candidate that will be scored, in order."""
        return self.entries.read(self.first, len(self.entries))


class Scorer(ABC):
    """One way to score."""

    alone = True
    """Whether a candidate's score is its own, whatever other candidates there are."""

    null_passes = False
    """Whether a requirement is met where nothing can be told of a candidate."""

    def facts(self) -> Mapping[str, Any]:
        """What else its numbers depend on, for the settings beside the file; JSON-ready."""
        return {}

    def begin(self, work: ScoringWork) -> None:
        """Told once, before anything is scored.

        Args:
            work: what will be.
        """
        return None

    @abstractmethod
    def score(self, entries: Sequence[CandidateEntry]) -> Sequence[Any]:
        """A number for each candidate, None where it has no score.

        Args:
            entries: some candidates, in the order of the file.
        """

    def close(self) -> None:
        """Give back what it holds; also after an error."""
        return None

    def remarks(self) -> Sequence[str]:
        """What is to be said of it at the end, a line each."""
        return ()


class OneByOne(Scorer):
    """A scorer of texts that looks at one candidate at a time.

    Args:
        number: a candidate's score; None where it has none.
        about: its facts.
        null_passes: as of ``Scorer``.
    """

    def __init__(
        self,
        number: Callable[[CandidateEntry], float | None],
        about: Mapping[str, Any] | None = None,
        *,
        null_passes: bool = False,
    ) -> None:
        self._number, self._about, self.null_passes = number, about or {}, null_passes

    def facts(self) -> Mapping[str, Any]:
        """What it was made with."""
        return self._about

    def score(self, entries: Sequence[CandidateEntry]) -> list[float | None]:
        """One after the other."""
        return [self._number(entry) for entry in entries]


def checked(values: Any, entries: Sequence[CandidateEntry], name: str) -> list[float | None]:
    """A scorer's numbers as Python's own.

    Args:
        values: what it gave.
        entries: for which candidates.
        name: the scorer's.

    Raises:
        DataError: CP243 naming scorer and candidate, for what is no finite number and not None,
            and for more or fewer of them than candidates.
    """
    listed = plain(values)
    if not isinstance(listed, list):
        raise DataError(
            "CP243",
            f"the scorer {name} gave {type(values).__name__} for {len(entries)} candidates from "
            f"{entries[0].place} on; expected a list of numbers.",
        )
    if len(listed) != len(entries):
        raise DataError(
            "CP243",
            f"the scorer {name} gave {len(listed)} numbers for {len(entries)} candidates from "
            f"{entries[0].place} on; expected one each.",
        )
    return [_finite(value, entry, name) for value, entry in zip(listed, entries, strict=True)]


def _finite(value: Any, entry: CandidateEntry, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise DataError(
        "CP243",
        f"{entry.place}: the scorer {name} gave {str(value)[:40]!r}; expected a finite number, or "
        "null for a candidate that it cannot score.",
    )
