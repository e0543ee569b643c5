"""The order of an epoch: which pair stands at each place of it, asked for some places at a time.

A shuffled set of up to ``LISTED`` pairs has its order written out, as torch draws it. The order of
a larger one is computed, place by place: a Feistel network over the least power of two that holds
all pairs, whose keys come from seed and epoch. A place that it sends beyond the set is sent on
until it falls into it (cycle walking), less than once on average. No place costs memory, and any
part of an epoch can be asked for at once.

Up to 0.4 every order was written out (``WRITTEN_OUT``), and a run that began so ends so.

Not here: which places make a step, and whose they are (``sampler``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Places: TypeAlias = NDArray[np.int64]
Order: TypeAlias = Callable[[Places], Places]
"""From places of an epoch to the keys of the pairs that stand there."""

LISTED = 1 << 20
"""Most pairs whose order is written out: 8 MB."""

WRITTEN_OUT, COMPUTED, LISTS_TOGETHER = 1, 2, 3
"""Versions of the order: written out at any size, as up to 0.4; computed above ``LISTED``; pairs of
one list beside each other (``list_order``)."""

ROUNDS = 10
"""Of the network. Six already pass what ``tests/data/test_order.py`` asks."""

MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Multipliers of splitmix64's finalizer, in which every bit of the input moves every other."""


def order_of(pairs: int, seed: int | None, epoch: int, *, version: int = LISTS_TOGETHER) -> Order:
    """The order of an epoch.

    Args:
        pairs: size of the set, at least 1 and at most 2^63.
        seed: of the shuffling; None keeps the set's order.
        epoch: from 0.
        version: ``WRITTEN_OUT`` or a later one, which differ above ``LISTED`` pairs only.
    """
    if seed is None:
        return _as_it_is
    if pairs > LISTED and version != WRITTEN_OUT:
        return KeyedPermutation(pairs, f"{seed} {epoch}")
    generator = torch.Generator().manual_seed(seed + epoch)
    drawn: Places = torch.randperm(pairs, generator=generator).numpy()
    return drawn.__getitem__


def orders_of(pairs: int, seed: int | None) -> Callable[[int], Order]:
    """The order of each epoch of a new run, by the epoch; see ``order_of``."""
    return partial(order_of, pairs, seed)


def _as_it_is(places: Places) -> Places:
    return places


class KeyedPermutation:
    """A permutation of ``range(size)`` in a few hundred bytes.

    Args:
        size: at least 1 and at most 2^63.
        key: another one gives another permutation.
    """

    def __init__(self, size: int, key: str) -> None:
        if not 1 <= size <= 1 << 63:
            raise ValueError(f"a permutation of {size} numbers; expected 1 to 2^63.")
        self.size = size
        bits = (size - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << bits // 2) - 1)
        self._high = np.uint64((1 << bits - bits // 2) - 1)
        drawn = b"".join(
            blake2b(f"{key} {number}".encode(), digest_size=8).digest() for number in range(ROUNDS)
        )
        self._keys = np.frombuffer(drawn, "<u8").astype(np.uint64)

    def __call__(self, places: Places) -> Places:
        """Where each place is sent.

        Args:
            places: from 0 to below ``size``, any shape.
        """
        found = self._once(np.asarray(places).astype(np.uint64))
        last = np.uint64(self.size - 1)
        while (beyond := found > last).any():
            found[beyond] = self._once(found[beyond])
        return found.astype(np.int64)

    def _once(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The network, a permutation of all numbers of so many bits."""
        high, low = numbers >> self._low_bits, numbers & self._low
        # each half in turn is changed by what the other says, which can be undone
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _mixed(high, key) & self._low
            else:
                high ^= _mixed(low, key) & self._high
        joined: NDArray[np.uint64] = (high << self._low_bits) | low
        return joined


def _mixed(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    mixed = numbers ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * MIX[1]
    return mixed ^ (mixed >> np.uint64(31))
