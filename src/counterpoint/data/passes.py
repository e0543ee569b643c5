"""Which pairs of a second set come with a step: a function of the seed and the step's number.

A second set is gone through again and again beside the training set, whose epochs it knows nothing
of. Each pass is cut into steps whose sizes differ by at most one, so that every pair comes once a
pass, and no step estimates a rate on a few left-over pairs.

Not here: reading the pairs, and which rank takes which of them (``trainer.second_sets``).
"""

from __future__ import annotations

import torch


class Passes:
    """Pass after pass over a second set, step by step.

    Args:
        pairs: size of the set, at least 1.
        most: most pairs of a step, at least 1.
        seed: of the shuffling, new in each pass; None keeps the set's order.
    """

    def __init__(self, pairs: int, *, most: int, seed: int | None) -> None:
        self.pairs, self.seed = pairs, seed
        self.steps = -(-pairs // min(most, pairs))
        """Steps of a pass."""
        self._shuffled: tuple[int, list[int]] | None = None

    def of_step(self, number: int) -> list[int]:
        """Keys of the pairs of a step, no two alike.

        Args:
            number: steps that were drawn before, those that were skipped included.
        """
        done, step = divmod(number, self.steps)
        first, last = (at * self.pairs // self.steps for at in (step, step + 1))
        return self._order(done)[first:last]

    def _order(self, number: int) -> list[int]:
        if self.seed is None:
            return list(range(self.pairs))
        if self._shuffled is None or self._shuffled[0] != number:
            generator = torch.Generator().manual_seed(self.seed + number)
            order: list[int] = torch.randperm(self.pairs, generator=generator).tolist()
            self._shuffled = (number, order)
        return self._shuffled[1]
