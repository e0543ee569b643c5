"""Where a pair lies in a row that holds several, each with its prompt once.

Not here: how pairs are laid so (``forward.rows``), and attention among them.
"""

from __future__ import annotations

from typing import NamedTuple


class PairSegments(NamedTuple):
    """Where a pair lies in a row: ``prompt | chosen | rejected | gold``, its prompt once."""

    row: int
    start: int
    prompt: int
    chosen: int
    rejected: int
    gold: int = 0

    @property
    def completions(self) -> tuple[int, ...]:
        """Lengths of the completions that there are, in their order."""
        return self[3:] if self.gold else self[3:5]

    @property
    def tokens(self) -> int:
        """Tokens of all of it."""
        return sum(self[2:])
