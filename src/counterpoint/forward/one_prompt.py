"""Pairs of one prompt stand in a shared row together: the prompt once, each completion once.

Several rejected completions of a prompt are so many pairs (``data.several``). Where some of them
meet in a micro-batch, their prompt and their chosen completion are computed once.

1. Pairs that stand beside each other and have the same prompt, and the same pictures, are together.
   An empty prompt has nothing to share.
2. A completion that another pair of them has in the same place (chosen, rejected or gold) is there
   once. Chosen and rejected of one pair stay two, whatever they are.

Not here: how they are laid (``rows``), which pairs make a batch (``data.batching``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.pair_segments import PairSegments
from counterpoint.records import PairBatch, TokenPair


@dataclass(slots=True)
class OnePrompt:
    """Pairs of a batch that have one prompt.

    Args:
        pairs: their numbers in the batch.
        first: of each completion that is there, the number of the first pair that has it, and which
            of that pair's it is.
        of: of each pair, which of ``first`` its completions are, in their order.
    """

    pairs: list[int] = field(default_factory=list)
    first: list[tuple[int, int]] = field(default_factory=list)
    of: list[tuple[int, ...]] = field(default_factory=list)

    def segment(self, batch: Sequence[TokenPair], start: int) -> PairSegments:
        """Where they lie in a single row.

        Args:
            batch: its pairs.
            start: the first token.
        """
        lengths = tuple(len(batch[pair].completions[side]) for pair, side in self.first)
        return PairSegments(0, start, len(self.asking(batch).prompt), lengths)

    def asking(self, batch: Sequence[TokenPair]) -> TokenPair:
        """The first pair, whose prompt and pictures all of them have.

        Args:
            batch: its pairs.
        """
        return batch[self.pairs[0]]


def by_prompt(batch: Sequence[TokenPair]) -> list[OnePrompt]:
    """The pairs of a batch, those of one prompt together.

    Args:
        batch: its pairs, in their order.
    """
    found: list[OnePrompt] = []
    places: dict[tuple[int, ...], int] = {}
    before = None
    for number, pair in enumerate(batch):
        asked = asks(pair)
        if asked is None or asked != before:
            found.append(OnePrompt())
            places, before = {}, asked
        together, its = found[-1], []
        for side, completion in enumerate(pair.completions):
            its.append(places.setdefault((side, *completion), len(places)))
            if its[-1] == len(together.first):
                together.first.append((number, side))
        together.pairs.append(number)
        together.of.append(tuple(its))
    return found


def asks(pair: TokenPair) -> tuple[object, ...] | None:
    """What pairs of one prompt have alike; None where there is nothing to share.

    Args:
        pair: any.
    """
    if not pair.prompt:
        return None
    return *pair.prompt, *(picture.digest for picture in pair.seen or pair.pictures)


def times_read(batch: PairBatch) -> Int[Tensor, " tokens"]:
    """How often each token of a shared row counts: once a completion of a pair that sees it.

    Args:
        batch: in a single row; its fillers count nowhere.
    """
    counted, times, lengths = batch.counted.tolist(), list[int](), list[int]()
    for together, segment in zip(by_prompt(batch.pairs), batch.segments, strict=True):
        pairs = zip(together.pairs, together.of, strict=True)
        had = [place for number, its in pairs if counted[number] for place in its]
        times += [len(had), *(had.count(place) for place in range(len(together.first)))]
        lengths += [segment.prompt, *segment.completions]
    return torch.tensor(times).repeat_interleave(torch.tensor(lengths))


def whose(batch: PairBatch, position: int) -> tuple[int, int | None, int]:
    """The first pair that has a token of a shared row.

    Args:
        batch: in a single row.
        position: of the token.

    Returns:
        The pair's number; which of its completions, None for the prompt; and the place in that.
    """
    number = bisect_right([one.start for one in batch.segments], position) - 1
    together, segment = by_prompt(batch.pairs)[number], batch.segments[number]
    left = position - segment.start
    if left < segment.prompt:
        return together.pairs[0], None, left
    left -= segment.prompt
    ends = [*accumulate(segment.completions)]
    place = bisect_right(ends, left)
    return *together.first[place], left - ends[place] + segment.completions[place]
