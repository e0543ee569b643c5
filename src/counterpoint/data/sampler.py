"""Which pairs make a step, and which rank and micro-batch each of them goes to.

A step is a set of pairs: ``micro_batch x accumulation x ranks`` of them, fewer at the end of an
epoch. Every pair is in exactly one step of an epoch; none is repeated to make shares even. A
rank that would go empty in a short last step gets a filler, a copy of weight 0 that keeps the
ranks in step with each other and counts nowhere.

Not here: reading the pairs, laying them into rows (``forward.layouts``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def deal(keys: Sequence[int], *, micro_batch: int, ranks: int, rank: int) -> list[list[int]]:
    """One rank's micro-batches of one step.

    Args:
        keys: the step's pairs, at least one.
        micro_batch: most pairs of a micro-batch, at least 1.
        ranks: number of ranks.
        rank: which of them, from 0.

    Returns:
        Micro-batches of keys, the same number on every rank, sizes differing by at most one. A
        micro-batch without a pair holds a filler key: the complement ``~key`` of the first.
    """
    rounds = -(-len(keys) // (micro_batch * ranks))
    boxes = rounds * ranks
    sizes = [len(keys) // boxes + (box < len(keys) % boxes) for box in range(boxes)]
    starts = [sum(sizes[:box]) for box in range(boxes)]
    mine = range(rank, boxes, ranks)
    return [list(keys[starts[b] : starts[b] + sizes[b]]) or [~keys[0]] for b in mine]


class StepSampler(Sampler[list[int]]):
    """Micro-batches of one rank, epoch after epoch, as a batch sampler of keys.

    The order of an epoch is a function of the seed and the epoch alone.

    Args:
        pairs: size of the data set, at least 1.
        micro_batch: most pairs of a micro-batch.
        accumulation: micro-batches of a step on each rank.
        ranks: number of ranks.
        rank: which of them, from 0.
        seed: of the shuffling; None keeps the data set's order.
        drop_last: leave out a short last step.
    """

    def __init__(
        self,
        pairs: int,
        *,
        micro_batch: int,
        accumulation: int = 1,
        ranks: int = 1,
        rank: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.pairs, self.seed = pairs, seed
        self.micro_batch, self.ranks, self.rank = micro_batch, ranks, rank
        self.step_pairs = micro_batch * accumulation * ranks
        self.used = pairs - pairs % self.step_pairs if drop_last else pairs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        full, rest = divmod(self.used, self.step_pairs)
        per_round = self.micro_batch * self.ranks
        return full * (self.step_pairs // per_round) + -(-rest // per_round)

    def __iter__(self) -> Iterator[list[int]]:
        """The micro-batches of the current epoch."""
        order = self._order()
        for start in range(0, self.used, self.step_pairs):
            keys = order[start : min(start + self.step_pairs, self.used)]
            yield from deal(keys, micro_batch=self.micro_batch, ranks=self.ranks, rank=self.rank)

    def _order(self) -> list[int]:
        if self.seed is None:
            return list(range(self.pairs))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.pairs, generator=generator).tolist()
