"""What a file of scored candidates holds, counted: scores, candidates without one, vetoes.

Not here: writing it (``scored_file``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCORE = "score"
"""Name of the weighted number, in tables of scores."""


@dataclass
class ScoreRange:
    """The numbers of one scorer.

    Args:
        count: candidates that have one.
        missing: candidates that have none.
        least: of the numbers; infinite without any.
        most: likewise.
        total: their sum.
    """

    count: int = 0
    missing: int = 0
    least: float = math.inf
    most: float = -math.inf
    total: float = 0.0

    def add(self, number: float | None) -> None:
        """Count one more candidate."""
        if number is None:
            self.missing += 1
            return
        self.count += 1
        self.total += number
        self.least, self.most = min(self.least, number), max(self.most, number)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        found = {"scored": self.count, "without": self.missing}
        if not self.count:
            return found
        mean = self.total / self.count
        return {**found, "mean": mean, "least": self.least, "most": self.most}


@dataclass
class ScoreAccount:
    """What became of every candidate.

    Args:
        candidates: lines of the file.
        ranges: of each scorer and of the weighted number, by name.
        vetoed: candidates with a veto.
        vetoes: how many each requirement vetoed.
        dropped: lines that could not be used, by code.
        examples: the first message of each code.
        remarks: what the scorers say.
    """

    candidates: int = 0
    ranges: dict[str, ScoreRange] = field(default_factory=dict)
    vetoed: int = 0
    vetoes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of the file."""
        self.candidates += 1
        for name, number in {**row["scores"], SCORE: row["score"]}.items():
            self.ranges.setdefault(name, ScoreRange()).add(number)
        self.vetoed += bool(row["vetoed"])
        self.vetoes.update(row["vetoed"])

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "candidates": self.candidates,
            "scores": {name: one.as_dict() for name, one in self.ranges.items()},
            "vetoed": self.vetoed,
            "vetoes": dict(sorted(self.vetoes.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "examples": dict(sorted(self.examples.items())),
            "remarks": self.remarks,
        }

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.candidates:,} candidates"]
        if self.dropped:
            codes = ", ".join(f"{n:,} × {code}" for code, n in self.dropped.most_common())
            lines.append(f"  dropped: {codes}")
            lines += [f"    for example {text}" for text in self.examples.values()]
        width = max(map(len, self.ranges), default=0)
        for name, one in self.ranges.items():
            text = "no candidate has one"
            if one.count:
                mean = one.total / one.count
                text = f"mean {mean:.4g}, from {one.least:.4g} to {one.most:.4g}"
            text += f"; {one.missing:,} without" if one.missing else ""
            lines.append(f"  {name:<{width}}  {text}")
        if self.vetoed:
            by = ", ".join(f"{n:,} by {name}" for name, n in self.vetoes.most_common())
            lines.append(f"  {self.vetoed:,} vetoed: {by}")
        return "\n".join([*lines, *(f"  {text}" for text in self.remarks)])


def account_of(path: Path) -> ScoreAccount:
    """Count a file of scored candidates.

    Args:
        path: of the file.
    """
    found = ScoreAccount()
    with path.open("rb") as file:
        for line in file:
            found.add(json.loads(line))
    return found
