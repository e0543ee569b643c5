"""Which pairs of a second set come with a step: a function of the seed and the step's number.

A second set is gone through again and again beside the training set, whose epochs it knows nothing
of. Each pass is cut into steps whose sizes differ by at most one, so that every pair comes once a
pass, and no step estimates a rate on a few left-over pairs.

Not here: reading the pairs, and which rank takes which of them (``trainer.second_sets``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from counterpoint.data.order import Order


class Passes:
    """Pass after pass over a second set, step by step.

    Args:
        pairs: size of the set, at least 1.
        most: most pairs of a step, at least 1.
        orders: gives the order of a pass, from 0; asked once a pass.
    """

    def __init__(self, pairs: int, *, most: int, orders: Callable[[int], Order]) -> None:
        self.pairs, self.orders = pairs, orders
        self.steps = -(-pairs // min(most, pairs))
        """Steps of a pass."""
        self._running: tuple[int, Order] | None = None

    def of_step(self, number: int) -> list[int]:
        """Keys of the pairs of a step, no two alike.

        Args:
            number: steps that were drawn before, those that were skipped included.
        """
        done, step = divmod(number, self.steps)
        first, last = (at * self.pairs // self.steps for at in (step, step + 1))
        if self._running is None or self._running[0] != done:
            self._running = done, self.orders(done)
        keys: list[int] = self._running[1](np.arange(first, last)).tolist()
        return keys
