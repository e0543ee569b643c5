"""The order of an epoch over several sets with weights: a function of the seed alone.

1. A set of n pairs and weight w gives each epoch ``q = max(1, floor(w n + 1/2))`` of its places.
2. Its pairs come in passes. A pass is a permutation of the set, keyed with the seed, the set's
   number and the pass's. Epoch e takes places e q to (e + 1) q - 1 of all passes behind one
   another. So no pair comes more than once more often than another, whatever the weight: with
   weight 1/2 an epoch takes the half that the one before left, with weight 2 it takes each twice.
3. The places of all sets are then shuffled together, as those of a single set are (``order``).

Nothing is kept from one epoch to the next, and no place costs memory.

Not here: opening sets (``mixture``), which places make a step (``sampler``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from counterpoint.data.order import KeyedPermutation, Order, Places, order_of


@dataclass(frozen=True, slots=True)
class SetShare:
    """What one set gives to an epoch.

    Args:
        name: of the set.
        rows: raw rows of it.
        pairs: of these that are pairs, at least 1.
        weight: of the set.
    """

    name: str
    rows: int
    pairs: int
    weight: Fraction

    @property
    def epoch(self) -> int:
        """Places of it in an epoch."""
        return max(1, math.floor(self.weight * self.pairs + Fraction(1, 2)))

    def as_dict(self) -> dict[str, Any]:
        """The share as plain JSON types."""
        facts = {"name": self.name, "rows": self.rows, "pairs": self.pairs, "epoch": self.epoch}
        return {**facts, "weight": float(self.weight)}

    def in_words(self, whole: int) -> str:
        """The share in words, ``whole`` being the places of an epoch."""
        return (
            f"{self.name}: {self.pairs:,} of {self.rows:,} rows, weight {float(self.weight):g}: "
            f"{self.epoch:,} of {whole:,} pairs of an epoch ({self.epoch / whole:.1%})"
        )


class MixedOrder:
    """Epoch after epoch over several sets that stand behind one another.

    Args:
        shares: of the sets, in the order in which they stand; at least one.
    """

    def __init__(self, shares: Sequence[SetShare]) -> None:
        self.shares = tuple(shares)
        self._sizes = [one.pairs for one in shares]
        self._quotas = [one.epoch for one in shares]
        self._begins = np.cumsum([0, *self._quotas])
        self._first = np.cumsum([0, *self._sizes])

    @property
    def pairs(self) -> int:
        """Places of an epoch."""
        return int(self._begins[-1])

    def __str__(self) -> str:
        """Sizes and weights, which an experiment stands on; names are no part of it."""
        return " + ".join(f"{one.pairs} x {one.weight}" for one in self.shares)

    def orders(self, seed: int | None) -> Callable[[int], Order]:
        """The order of each epoch, from 0: from places of it to keys of pairs.

        Args:
            seed: of the shuffling; None takes the sets one after another, each in its own order.
        """

        def order(epoch: int) -> Order:
            outer = order_of(self.pairs, seed, epoch)
            return lambda places: self._keys(outer(places), epoch, seed)

        return order

    def _keys(self, places: Places, epoch: int, seed: int | None) -> Places:
        """The keys at some places of an epoch before it is shuffled."""
        found = np.empty(np.shape(places), dtype=np.int64)
        of = np.searchsorted(self._begins, places, side="right") - 1
        for number in np.unique(of):
            mine = of == number
            at = epoch * self._quotas[number] + places[mine] - self._begins[number]
            found[mine] = self._first[number] + self._in_passes(at, int(number), seed)
        return found

    def _in_passes(self, at: Places, number: int, seed: int | None) -> Places:
        """Pairs of one set at some places of its passes behind one another."""
        size = self._sizes[number]
        passes, within = np.divmod(at, size)
        if seed is None:
            return within
        for one in np.unique(passes):
            mine = passes == one
            turned = KeyedPermutation(size, f"{seed} set {number} pass {one}")
            within[mine] = turned(within[mine])
        return within
