"""Which pairs make a step, and which rank and micro-batch each of them goes to.

A step is a set of so many pairs, fewer at the end of an epoch. Every pair is in exactly one step
of an epoch; none is repeated to make shares even, nor where ranks and micro-batches do not divide a
step. A rank that would go empty gets a filler, a copy of weight 0 that keeps the ranks in step with
each other and counts nowhere.

Not here: in which order the pairs come (``order``), reading them, laying them into rows
(``forward.layouts``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from counterpoint.config import accumulation_for
from counterpoint.data.order import Order, orders_of


def deal(
    keys: Sequence[int], *, micro_batch: int, ranks: int, rank: int, rounds: int = 1
) -> list[list[int]]:
    """One rank's micro-batches of one step.

    Args:
        keys: the step's pairs, at least one.
        micro_batch: most pairs of a micro-batch, at least 1.
        ranks: number of ranks.
        rank: which of them, from 0.
        rounds: fewest micro-batches of a rank.

    Returns:
        Micro-batches of keys, the same number on every rank, sizes differing by at most one. A
        micro-batch without a pair holds a filler key: the complement ``~key`` of the first.
    """
    rounds = max(rounds, accumulation_for(len(keys), micro_batch=micro_batch, ranks=ranks))
    boxes = rounds * ranks
    size, more = divmod(len(keys), boxes)

    def start(box: int) -> int:
        return box * size + min(box, more)

    mine = range(rank, boxes, ranks)
    return [list(keys[start(box) : start(box + 1)]) or [~keys[0]] for box in mine]


class StepSampler(Sampler[list[int]]):
    """Micro-batches of one rank, epoch after epoch, as a batch sampler of keys.

    Args:
        pairs: size of the data set, at least 1.
        micro_batch: most pairs of a micro-batch.
        step_pairs: pairs of a step over all ranks, at least 1.
        ranks: number of ranks.
        rank: which of them, from 0.
        orders: gives the order of an epoch, from 0; None keeps the data set's order.
        drop_last: leave out a short last step.
    """

    def __init__(
        self,
        pairs: int,
        *,
        micro_batch: int,
        step_pairs: int,
        ranks: int = 1,
        rank: int = 0,
        orders: Callable[[int], Order] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.pairs, self.step_pairs = pairs, step_pairs
        self.orders = orders_of(pairs, None) if orders is None else orders
        self.micro_batch, self.ranks, self.rank = micro_batch, ranks, rank
        # of every step, the short last one too: where an epoch stands is then the same on any ranks
        self.accumulation = accumulation_for(step_pairs, micro_batch=micro_batch, ranks=ranks)
        self.used = pairs - pairs % step_pairs if drop_last else pairs
        self.epoch = 0
        self.done = 0
        """Micro-batches of the next pass that are given empty, whole steps of them: a resumed run
        counts them and throws them away."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return -(-self.used // self.step_pairs) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """The micro-batches of the current epoch."""
        order, done = self.orders(self.epoch), self.done
        self.done = 0
        yield from ([] for _ in range(done))
        first = done // self.accumulation * self.step_pairs
        for start in range(first, self.used, self.step_pairs):
            places = range(start, min(start + self.step_pairs, self.used))
            mine = deal(
                places,
                micro_batch=self.micro_batch,
                ranks=self.ranks,
                rank=self.rank,
                rounds=self.accumulation,
            )
            yield from (_at(order, box) for box in mine)


def _at(order: Order, places: list[int]) -> list[int]:
    """The keys at some places; a filler's place, a complement, has a filler's key."""
    wanted = np.asarray(places, dtype=np.int64)
    fills = wanted < 0
    found = order(np.where(fills, ~wanted, wanted))
    keys: list[int] = np.where(fills, ~found, found).tolist()
    return keys
