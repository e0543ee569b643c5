"""Prepared pairs to the windows of a step: the data loaders of training and evaluation.

A data set of known length is dealt by a ``StepSampler``. A stream is read whole by every rank,
which keeps its own share of each step: a step is then the same set of pairs on any number of
ranks, and no rank runs dry before another.

A loader gives pairs, not tensors: the trainer sees all pairs of a step before it cuts them into
micro-batches (``cut``), and chooses their layout.

Not here: what a step is (``sampler``), how a batch is laid out (``forward.layouts``), text and
tokens (``prepare``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from counterpoint.config import accumulation_for
from counterpoint.data.sampler import StepSampler, deal
from counterpoint.records import FILLER_ROW, TokenPair


class KeyedPairs(Dataset[TokenPair]):
    """Prepared pairs by key; a complement key ``~i`` gives pair ``i`` as a filler.

    Args:
        rows: prepared pairs, indexable by lists of numbers.
        to_pair: from a prepared row to a ``TokenPair``.
    """

    def __init__(self, rows: Any, to_pair: Callable[[Mapping[str, Any]], TokenPair]) -> None:
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


class DealtStream(IterableDataset[list[TokenPair]]):
    """One rank's windows of a stream, whole steps only.

    The last step of a pass may hold fewer pairs; its windows are filled up with fillers, so
    that it is closed, and applied, like any other.

    Args:
        pairs: called at the start of a pass, gives its pairs.
        micro_batch: most pairs of a micro-batch.
        step_pairs: pairs of a step over all ranks, at least 1.
        ranks: number of ranks.
        rank: which of them, from 0.
    """

    def __init__(
        self,
        pairs: Callable[[], Iterable[TokenPair]],
        *,
        micro_batch: int,
        step_pairs: int,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        self.pairs = pairs
        self.done = 0
        """Windows of the next pass that are not read again, but given empty: a resumed run
        counts them and throws them away. ``pairs`` then begins after them."""
        self.micro_batch, self.step_pairs = micro_batch, step_pairs
        self.ranks, self.rank = ranks, rank
        self.accumulation = accumulation_for(step_pairs, micro_batch=micro_batch, ranks=ranks)

    def __iter__(self) -> Iterator[list[TokenPair]]:
        """The windows of one pass over the stream."""
        pairs = iter(self.pairs())
        yield from ([] for _ in range(self.done))
        self.done = 0
        while step := list(islice(pairs, self.step_pairs)):
            mine = deal(
                range(len(step)),
                micro_batch=self.micro_batch,
                ranks=self.ranks,
                rank=self.rank,
                rounds=self.accumulation,
            )
            for keys in mine:
                yield [step[key] if key >= 0 else filler(step[~key]) for key in keys]


class PairLoader(DataLoader[Any]):
    """A data loader whose sampler is told the epoch, as transformers' loop expects."""

    pairs: Any = None
    """The prepared set that it deals out."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        if isinstance(self.batch_sampler, StepSampler):
            self.batch_sampler.set_epoch(epoch)

    def leave_out(self, windows: int) -> None:
        """Give the first windows of the next pass empty and unread: they are done, whole steps."""
        left: Any = self.dataset if isinstance(self.dataset, DealtStream) else self.batch_sampler
        left.done = windows


def filler(pair: TokenPair) -> TokenPair:
    """A copy that keeps a rank busy and counts nowhere."""
    return replace(pair, row=FILLER_ROW, weight=0.0)


def cut(
    pairs: Sequence[TokenPair],
    *,
    most_pairs: int,
    most_tokens: int | None,
    tokens_of: Callable[[Sequence[TokenPair]], int],
    common: Callable[[TokenPair], Hashable] = lambda pair: None,
) -> list[list[TokenPair]]:
    """Cut one rank's share of a step into micro-batches of like lengths.

    Args:
        pairs: of one step; fillers are left out if there is any other.
        most_pairs: most pairs of a micro-batch where ``most_tokens`` is None.
        most_tokens: most input tokens of a micro-batch; a pair above it stands alone.
        tokens_of: input tokens that the layout makes of some pairs; more pairs make no fewer.
        common: what pairs that should be beside each other have alike; None for all: nothing.

    Returns:
        Micro-batches, those of most tokens first, so that what does not fit is known at once.
    """
    real = [pair for pair in pairs if pair.row != FILLER_ROW] or list(pairs[:1])
    real.sort(key=lambda pair: (-length(pair), pair.row))
    alike: dict[Hashable, list[TokenPair]] = {}
    for pair in real:
        alike.setdefault(common(pair), []).append(pair)
    ordered, batches = list(chain.from_iterable(alike.values())), list[list[TokenPair]]()
    start = 0
    while start < len(ordered):
        most = most_pairs
        if most_tokens is not None:
            most = _first_that_fit(ordered[start:], lambda few: tokens_of(few) <= most_tokens)
        batches.append(ordered[start : start + most])
        start += most
    return sorted(batches, key=tokens_of, reverse=True)


def _first_that_fit(pairs: Sequence[TokenPair], fit: Callable[[Sequence[TokenPair]], bool]) -> int:
    """How many pairs from the first on fit together, at least one.

    Tried with twice as many each time, and then halved: so that a layout, which looks at all of
    them, is not asked again for each pair.
    """
    found, more = 1, 1
    while found + more <= len(pairs) and fit(pairs[: found + more]):
        found, more = found + more, 2 * more
    while more := more // 2:
        if found + more <= len(pairs) and fit(pairs[: found + more]):
            found += more
    return found


def length(pair: TokenPair) -> int:
    """Tokens of a pair whose prompt is there once."""
    return len(pair.prompt) + sum(map(len, pair.completions))
