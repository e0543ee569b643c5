"""Pairs as lengths alone: what memory depends on.

Not here: the tokens themselves (``data``), and what lengths say of preferences (``doctor``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset

from counterpoint.forward.layouts import LAYOUTS
from counterpoint.planner.pictures import Shown
from counterpoint.preference_row import GOLD, PARTS
from counterpoint.records import PairBatch, TokenPair

LONG = 0.1
"""Share of the pairs, the longest, whose mean length stands for those of a full micro-batch."""

MOST, SOME = 1 << 20, 100_000
"""Pairs of which all are looked at; and how many are of a larger set, for a prediction."""

AT_ONCE = 10_000
"""Pairs whose tokens are looked at together."""


class Shape(NamedTuple):
    """Tokens of a pair."""

    prompt: int
    chosen: int
    rejected: int
    gold: int = 0

    def pair(self, number: int = 0) -> TokenPair:
        """A pair of this shape, whose prompt no pair of another number has."""
        prompt, chosen, rejected, gold = ([0] * length for length in self)
        return TokenPair([number] * len(prompt), chosen, rejected, row=0, start=[0], gold=gold)


class Load(NamedTuple):
    """What a micro-batch puts into the model.

    Args:
        text: input tokens, padding and what stands for pictures included.
        patches: that the tower reads.
    """

    text: int
    patches: int = 0

    @property
    def cost(self) -> int:
        """What a token budget counts."""
        return self.text + self.patches

    def within(self, cost: int) -> Load:
        """As much of the same kind as a budget allows.

        Args:
            cost: the budget.
        """
        if cost >= self.cost:
            return self
        patches = self.patches * cost // self.cost
        return Load(cost - patches, patches)


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Tokens of all pairs of a data set.

    Args:
        parts: of each pair its prompt, chosen and rejected completion, and its gold one where pairs
            have such; at least one row.
        shown: what they show; None: nothing.
    """

    parts: npt.NDArray[np.int64]
    shown: Shown | None = None

    @classmethod
    def of(cls, pairs: Dataset | Iterable[TokenPair], encoder: Any = None) -> Lengths:
        """Those of prepared pairs, or of pairs of tokens; of a large set of some spread evenly.

        Args:
            pairs: prepared.
            encoder: of the run; without it pictures are not counted.

        Raises:
            DataError: CP230 where the processor refuses a picture of the data's size.
        """
        if isinstance(pairs, Dataset):
            if len(pairs) > MOST:
                pairs = pairs.select(range(0, len(pairs), len(pairs) // SOME))
            return cls(np.concatenate([*_lengths(pairs)]), Shown.of(pairs, encoder))
        pairs = list(pairs)
        rows = [(len(pair.prompt), *map(len, pair.completions)) for pair in pairs]
        parts = np.asarray(rows, dtype=np.int64).reshape(len(rows), -1)
        return cls(parts, Shown.of(pairs, encoder))

    def within(self, max_length: int, max_completion_length: int | None = None) -> Lengths:
        """The same where no prompt and completion together hold more tokens than these.

        Whichever of them is cut, the longest a pair can be is the same.
        """
        most = max_length if max_completion_length is None else max_completion_length
        prompt = np.minimum(self.parts[:, :1], max_length - 1)
        completions = np.minimum(self.parts[:, 1:], np.minimum(max_length - prompt, most))
        return Lengths(np.concatenate([prompt, completions], 1), self.shown)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.parts)

    def longest(self, layout: str) -> Shape:
        """The pair of most input tokens."""
        return Shape(*(int(n) for n in self.parts[self._order(layout)[0]]))

    def heaviest(self, pairs: int, layout: str) -> int:
        """Tokens and patches of the heaviest micro-batch that so many pairs can make."""
        return self.load(pairs, layout).cost

    def load(self, pairs: int, layout: str) -> Load:
        """The same, apart."""
        heaviest = self._order(layout)[:pairs]
        shapes = [Shape(*(int(n) for n in row)) for row in self.parts[heaviest]]
        return Load(tokens_of(shapes, layout), int(self._patches(layout)[heaviest].sum()))

    def shares(self, layout: str) -> tuple[float, ...]:
        """The least and the largest share that patches have in what a pair costs."""
        patches = self._patches(layout)
        found = patches / (LAYOUTS[layout].tokens_alone(self.parts) + patches)
        return tuple({float(found.min()), float(found.max())})

    def long(self, layout: str) -> Shape:
        """What a pair of a full micro-batch is like: micro-batches are of like lengths."""
        few = max(1, round(LONG * len(self)))
        mean = np.ceil(self.parts[self._order(layout)[:few]].mean(0))
        return Shape(*(int(n) for n in mean))

    def uneven(self, pairs: int, layout: str) -> list[Shape]:
        """Four pairs with as much padding as so many have: a long one, and three shorter ones.

        Of each part, real tokens are the share of padded ones that they are in the heaviest
        micro-batch.

        Args:
            pairs: of a micro-batch.
            layout: of its rows.
        """
        long = self.long(layout)
        heaviest = self.parts[self._order(layout)[:pairs]]
        rows = heaviest[:, 1:].max()
        sides = heaviest.shape[1] - 1
        shares = heaviest.mean(0) / [heaviest[:, 0].max(), *[rows] * sides]
        full = (long.prompt, *[max(long[1:])] * sides)
        # of four pairs, three have what the long one leaves of the share
        least = [max(1, round(n * (4 * s - 1) / 3)) for n, s in zip(full, shares, strict=True)]
        return [Shape(*full), *[Shape(*least)] * 3]

    def quantiles(self) -> dict[str, int]:
        """Tokens of a pair, its prompt once: half of the pairs, and so on, have no more."""
        whole = self.parts.sum(1)
        shares = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
        return {name: int(np.quantile(whole, share)) for name, share in shares.items()}

    def _order(self, layout: str) -> npt.NDArray[np.int64]:
        costs = LAYOUTS[layout].tokens_alone(self.parts) + self._patches(layout)
        return np.argsort(-costs, kind="stable")

    def _patches(self, layout: str) -> npt.NDArray[np.int64]:
        """Of each pair, as often as the tower reads them."""
        if self.shown is None:
            return np.zeros(len(self), dtype=np.int64)
        again = LAYOUTS[layout].looks_again
        return self.shown.patches * (self.parts.shape[1] - 1 if again else 1)


def _lengths(pairs: Dataset) -> Iterator[npt.NDArray[np.int64]]:
    """A part at a time, so that no copy is made of all tokens."""
    for table in pairs.with_format("arrow").iter(AT_ONCE):
        names = (f"{part}_ids" for part in (*PARTS, GOLD))
        columns = [pc.list_value_length(table[n]) for n in names if n in table.column_names]
        yield np.stack([column.to_numpy() for column in columns], 1).astype(np.int64)


def tokens_of(shapes: Sequence[Shape], layout: str) -> int:
    """Input tokens of a micro-batch, padding included."""
    return LAYOUTS[layout].tokens(_pairs(shapes))


def batch_of(shapes: Sequence[Shape], layout: str, shown: Shown | None = None) -> PairBatch:
    """A micro-batch of pairs of these shapes, each about a picture if there is one."""
    pairs = _pairs(shapes)
    if shown is not None:
        pairs = [shown.pair(pair, number) for number, pair in enumerate(pairs)]
    return LAYOUTS[layout].collate(pairs)


def _pairs(shapes: Sequence[Shape]) -> list[TokenPair]:
    """Each with a prompt of its own: what pairs might share depends on more than their lengths."""
    return [shape.pair(number) for number, shape in enumerate(shapes)]
