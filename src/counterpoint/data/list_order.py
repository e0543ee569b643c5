"""Pairs of one list stay beside each other in the order of an epoch, which shuffles the lists.

A row that lists several rejected completions is so many pairs (``several``). What they have in
common is computed once where they meet in a micro-batch (``forward.one_prompt``), and so they come
in one step, or in two where a step ends within their list. A row without a list is a list of one.

The order costs 32 bytes a list. A set without lists has none of it (``order``).

Not here: sets that are streamed, whose rows come in their own order, and mixtures
(``mixed_order``), which shuffle pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from counterpoint.data.order import Order, Places, order_of
from counterpoint.data.said_lists import LISTED

AT_ONCE = 10_000
"""Rows that are looked at together."""


class ListOrder:
    """The order of a set of which some pairs belong together.

    Args:
        begins: the keys at which lists begin, rising, the first being 0.
        pairs: size of the set.
    """

    def __init__(self, begins: Places, pairs: int) -> None:
        self.pairs, self._begins = pairs, begins
        self._lengths = np.diff(begins, append=pairs)

    def order(self, seed: int | None, epoch: int) -> Order:
        """The order of an epoch: from places of it to keys of pairs.

        Args:
            seed: of the shuffling; None keeps the set's order.
            epoch: from 0.
        """
        if seed is None:
            return order_of(self.pairs, None, epoch)
        lists = order_of(len(self._begins), seed, epoch)(np.arange(len(self._begins)))
        ends = np.cumsum(self._lengths[lists])
        # what a place in its list is behind the place in the epoch
        behind = self._begins[lists] + self._lengths[lists] - ends

        def keys(places: Places) -> Places:
            found: Places = places + behind[np.searchsorted(ends, places, side="right")]
            return found

        return keys


def lists_in(raw: Dataset, pairs: Dataset) -> ListOrder | None:
    """How the pairs of a set belong together; None where no two do.

    Args:
        raw: its rows, taken apart (``several``).
        pairs: those that are left of them, in the same order, with a column ``row``.
    """
    if LISTED not in raw.column_names:
        return None
    lists = _column(raw, LISTED, lambda mark: pc.fill_null(pc.struct_field(mark, "row"), -1))
    of = lists[_column(pairs, "row", lambda row: row)]
    begins = np.ones(len(of), dtype=bool)
    begins[1:] = (of[1:] < 0) | (of[1:] != of[:-1])
    return None if begins.all() else ListOrder(np.flatnonzero(begins), len(of))


def _column(dataset: Dataset, name: str, values: Callable[[Any], Any]) -> Places:
    """What a column holds as numbers, read a part at a time."""
    parts = dataset.select_columns([name]).with_format("arrow").iter(AT_ONCE)
    return np.concatenate([values(part.column(name)).to_numpy() for part in parts])
