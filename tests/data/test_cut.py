"""Micro-batches hold as many pairs as fit, and a layout is asked seldom how many those are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.batching import cut
from counterpoint.forward.encoded import ENCODER_ONCE
from counterpoint.forward.layouts import PADDED, SHARED, Layout
from counterpoint.records import TokenPair

ids = st.lists(st.integers(1, 3), min_size=1, max_size=9)
parts = st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=20)


def one_by_one(
    ordered: Sequence[TokenPair], fits: Callable[[Sequence[TokenPair]], bool]
) -> list[list[TokenPair]]:
    """Each pair goes to the last micro-batch, unless that would be too large."""
    found: list[list[TokenPair]] = []
    for pair in ordered:
        if found and fits([*found[-1], pair]):
            found[-1].append(pair)
        else:
            found.append([pair])
    return found


@pytest.mark.parametrize("layout", [PADDED, SHARED, ENCODER_ONCE], ids=lambda one: one.name)
@given(parts=parts, most=st.integers(1, 200))
def test_each_micro_batch_holds_the_next_pairs_that_fit(
    layout: Layout, parts: list[tuple[list[int], ...]], most: int
) -> None:
    some = [TokenPair(*three, row) for row, three in enumerate(parts)]

    def cut_by(tokens: int | None, pairs: int) -> list[list[TokenPair]]:
        return cut(
            some,
            most_pairs=pairs,
            most_tokens=tokens,
            tokens_of=layout.tokens,
            common=layout.common,
        )

    (ordered,) = cut_by(None, len(some))
    for found, expected in (
        (cut_by(most, 1), one_by_one(ordered, lambda few: layout.tokens(few) <= most)),
        (cut_by(None, most), one_by_one(ordered, lambda few: len(few) <= most)),
    ):
        assert found == sorted(expected, key=layout.tokens, reverse=True)


@pytest.mark.parametrize("most", [1, 100, 1000, 10**6])
def test_a_layout_looks_at_a_pair_a_few_times_however_many_fit(most: int) -> None:
    some = [TokenPair([n], [n, 1], [2], n) for n in range(1000)]
    looked: list[int] = []

    def tokens_of(few: Sequence[TokenPair]) -> int:
        looked.append(len(few))
        return 4 * len(few)

    found = cut(some, most_pairs=1, most_tokens=most, tokens_of=tokens_of)
    assert sorted(pair.row for pair in chain.from_iterable(found)) == list(range(1000))
    assert sum(looked) <= len(some) * (6 + 2 * math.log2(len(some)))
