"""What becomes of a candidate's scores: one weighted number, or none, and its vetoes.

1. The number is the sum of weight times score. It is null where a score that has a weight is.
2. A candidate is vetoed by each requirement that it does not meet, and by its text being blank.
3. Of a candidate that was scored before, earlier scores and vetoes stay, but for those of the same
   names. The number is of what is asked for now.
4. Where a required score is null, nobody knows: there is no veto, and the number is null, too. A
   language that cannot be told of a short text is no reason for either.

Not here: what makes the scores (``scorer``), which pairs are made of them (``data.scored``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from counterpoint.scoring.asked import BLANK, AskedScorer
from counterpoint.scoring.entries import CandidateEntry


def scored_row(
    entry: CandidateEntry,
    scores: Mapping[str, float | None],
    asked: Sequence[AskedScorer],
    passing: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """A candidate's row with its scores.

    Args:
        entry: the candidate.
        scores: by name, of every scorer.
        asked: the scorers, with their weights.
        passing: names of those whose requirement a null meets.

    Returns:
        The row as it is, with ``scores``, ``score`` and ``vetoed``.
    """
    earlier, vetoed = _earlier(entry.row, {one.name for one in asked})
    vetoed += [] if entry.text.strip() else [BLANK]
    unknown = False
    for one in asked:
        score = scores[one.name]
        if one.require is not None:
            if score is None:
                unknown = unknown or one.name not in passing
            elif not one.require.is_met(score):
                vetoed.append(one.name)
    number = None if unknown else weighted(scores, asked)
    return {**entry.row, "scores": {**earlier, **scores}, "score": number, "vetoed": vetoed}


def _earlier(row: Mapping[str, Any], anew: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Scores and vetoes of an earlier scoring, without those that are found out anew."""
    scores, vetoed = row.get("scores"), row.get("vetoed")
    if not isinstance(scores, Mapping) or not isinstance(vetoed, list):
        return {}, []  # columns of these names, and no scoring's
    names = [str(name) for name in vetoed if name != BLANK and name not in anew]
    return {name: one for name, one in scores.items() if name not in anew}, names


def weighted(scores: Mapping[str, float | None], asked: Sequence[AskedScorer]) -> float | None:
    """The sum of weight times score; None where one of these scores is.

    Args:
        scores: by name.
        asked: the scorers; those of weight 0 are not looked at.
    """
    parts = []
    for one in asked:
        if one.weight:
            score = scores[one.name]
            if score is None:
                return None
            parts.append(one.weight * score)
    return math.fsum(parts)
