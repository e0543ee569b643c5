"""Where something was seen: how often, and in which rows first."""

from __future__ import annotations

from dataclasses import dataclass, field

from counterpoint.doctor.findings import MOST_ROWS


@dataclass(slots=True)
class Sightings:
    """Where something was seen.

    Args:
        count: in how many rows.
        rows: the first of them.
        example: the first message, if there is one.
    """

    count: int = 0
    rows: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, row: int, example: str = "") -> None:
        """See it once more."""
        self.count += 1
        if len(self.rows) < MOST_ROWS:
            self.rows.append(row)
        self.example = self.example or example
