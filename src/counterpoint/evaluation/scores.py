"""What a model says of each pair of a set, as arrays: all that the statistics may know.

Not here: how it was computed (``step.evaluation_pass``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairScores:
    """One entry a pair, in the order of the rows.

    Args:
        rows: row numbers in the data set, rising, each once.
        prompts: a number for each pair's prompt; equal where the prompts' tokens are.
        chosen_rewards: the objective's scaled reward of the chosen completion.
        rejected_rewards: the same of the rejected one.
        chosen_logps: summed log-probability of the chosen completion, in nats.
        rejected_logps: the same of the rejected one.
        chosen_tokens: tokens that these sums are over, at least 1.
        rejected_tokens: the same of the rejected one.
    """

    rows: Counts
    prompts: Counts
    chosen_rewards: Numbers
    rejected_rewards: Numbers
    chosen_logps: Numbers
    rejected_logps: Numbers
    chosen_tokens: Counts
    rejected_tokens: Counts

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.rows)

    def at(self, places: Any) -> PairScores:
        """The pairs at some places, given as numpy takes them: numbers or a mask."""
        return PairScores(*(getattr(self, field.name)[places] for field in fields(self)))


def aligned(before: PairScores, after: PairScores) -> tuple[PairScores, PairScores]:
    """The pairs that both have, in the same order.

    Another tokenizer may have left other rows within the limits.

    Args:
        before: scores of one model.
        after: scores of another one, of the same data set.
    """
    _, here, there = np.intersect1d(before.rows, after.rows, return_indices=True)
    return before.at(here), after.at(there)
