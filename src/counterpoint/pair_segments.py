"""Where pairs lie in a row that holds several, each prompt once.

Not here: how pairs are laid so (``forward.rows``), and attention among them.
"""

from __future__ import annotations

from typing import NamedTuple


class PairSegments(NamedTuple):
    """Where the pairs of one prompt lie in a row: ``prompt | completion | completion | ...``.

    A single pair is ``prompt | chosen | rejected``, perhaps with ``gold`` behind it.

    Args:
        row: number of the row.
        start: its first token in that row.
        prompt: tokens of the prompt.
        completions: tokens of each completion, in their order; at least one.
    """

    row: int
    start: int
    prompt: int
    completions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all of it."""
        return self.prompt + sum(self.completions)
