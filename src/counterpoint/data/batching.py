"""Prepared pairs to micro-batches: the data loaders of training and evaluation.

A data set of known length is dealt by a ``StepSampler``. A stream is read whole by every rank,
which keeps its own share of each step: a step is then the same set of pairs on any number of
ranks, and no rank runs dry before another.

Not here: what a step is (``sampler``), how a batch is laid out (``collate``), text and tokens
(``prepare``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from counterpoint.data.sampler import StepSampler, deal
from counterpoint.records import FILLER_ROW, PairBatch, TokenPair

Collate = Callable[[Sequence[TokenPair]], PairBatch]


class KeyedPairs(Dataset[TokenPair]):
    """Prepared pairs by key; a complement key ``~i`` gives pair ``i`` as a filler.

    Args:
        rows: prepared pairs, indexable by lists of numbers.
        to_pair: from a prepared row to a ``TokenPair``.
    """

    def __init__(self, rows: Any, to_pair: Callable[[Mapping[str, Any]], TokenPair]) -> None:
        """Keep the rows where they are."""
        self.rows, self.to_pair = rows, to_pair

    def __len__(self) -> int:
        """Number of pairs, fillers not counted."""
        return len(self.rows)

    def __getitem__(self, key: int) -> TokenPair:
        """One pair."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> list[TokenPair]:
        """A micro-batch of pairs, read at once."""
        columns = self.rows[[key if key >= 0 else ~key for key in keys]]
        names = list(columns)
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
        pairs = [self.to_pair(row) for row in rows]
        return [pair if key >= 0 else filler(pair) for key, pair in zip(keys, pairs, strict=True)]


class DealtStream(IterableDataset[PairBatch]):
    """One rank's micro-batches of a stream, whole windows only.

    The last step of a pass may hold fewer pairs; its window is filled up with fillers, so that
    it is closed, and applied, like any other.

    Args:
        pairs: called at the start of a pass, gives its pairs.
        collate: from pairs to a batch.
        micro_batch: most pairs of a micro-batch.
        accumulation: micro-batches of a step on each rank.
        ranks: number of ranks.
        rank: which of them, from 0.
    """

    def __init__(
        self,
        pairs: Callable[[], Iterable[TokenPair]],
        collate: Collate,
        *,
        micro_batch: int,
        accumulation: int = 1,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        """Remember the plan; nothing is read yet."""
        self.pairs, self.collate = pairs, collate
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.ranks, self.rank = ranks, rank

    def __iter__(self) -> Iterator[PairBatch]:
        """The micro-batches of one pass over the stream."""
        step_pairs = self.micro_batch * self.accumulation * self.ranks
        pairs = iter(self.pairs())
        while step := list(islice(pairs, step_pairs)):
            mine = deal(
                range(len(step)), micro_batch=self.micro_batch, ranks=self.ranks, rank=self.rank
            )
            mine += [[~0]] * (self.accumulation - len(mine))
            for keys in mine:
                yield self.collate([step[key] if key >= 0 else filler(step[~key]) for key in keys])


class PairLoader(DataLoader[Any]):
    """A data loader whose sampler is told the epoch, as transformers' loop expects."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        if isinstance(self.batch_sampler, StepSampler):
            self.batch_sampler.set_epoch(epoch)


def filler(pair: TokenPair) -> TokenPair:
    """A copy that keeps a rank busy and counts nowhere."""
    return replace(pair, row=FILLER_ROW, weight=0.0)
