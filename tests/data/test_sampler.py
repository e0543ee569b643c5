"""Dealing pairs to steps, ranks and micro-batches: each pair exactly once, ranks in step."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.batching import DealtStream, cut, filler
from counterpoint.data.order import KeyedPermutation, orders_of
from counterpoint.data.sampler import StepSampler, deal
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.records import FILLER_ROW, TokenPair

small = st.integers(1, 5)


def pair(row: int, prompt: int = 3, chosen: int = 2, rejected: int = 2) -> TokenPair:
    return TokenPair([1] * prompt, [2] * chosen, [3] * rejected, row)


@given(st.integers(1, 60), small, small)
def test_every_pair_of_a_step_goes_to_one_micro_batch_of_one_rank(pairs, micro_batch, ranks):
    keys = list(range(100, 100 + pairs))
    shares = [deal(keys, micro_batch=micro_batch, ranks=ranks, rank=r) for r in range(ranks)]
    dealt = [key for share in shares for batch in share for key in batch if key >= 0]
    assert sorted(dealt) == keys
    assert len({len(share) for share in shares}) == 1
    assert all(1 <= len(batch) <= micro_batch for share in shares for batch in share)


@given(st.integers(1, 60), small, small)
def test_a_filler_stands_only_where_a_micro_batch_would_be_empty(pairs, micro_batch, ranks):
    for rank in range(ranks):
        for batch in deal(range(pairs), micro_batch=micro_batch, ranks=ranks, rank=rank):
            fillers = [key for key in batch if key < 0]
            assert not fillers or batch == [~0]


@given(st.integers(1, 80), small, st.integers(1, 30), small, st.booleans())
def test_an_epoch_is_dealt_once_and_its_length_is_known(
    pairs, micro_batch, step_pairs, ranks, drop_last
):
    plans = [
        StepSampler(
            pairs,
            micro_batch=micro_batch,
            step_pairs=step_pairs,
            ranks=ranks,
            rank=rank,
            orders=orders_of(pairs, 3),
            drop_last=drop_last,
        )
        for rank in range(ranks)
    ]
    dealt = [list(plan) for plan in plans]
    assert [len(batches) for batches in dealt] == [len(plan) for plan in plans]
    assert all(len(batch) <= micro_batch for batches in dealt for batch in batches)
    expected = pairs - pairs % step_pairs if drop_last else pairs
    keys = [key for batches in dealt for batch in batches for key in batch if key >= 0]
    assert len(keys) == len(set(keys)) == expected


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    def order(seed: int | None, epoch: int) -> list[list[int]]:
        sampler = StepSampler(20, micro_batch=4, step_pairs=4, orders=orders_of(20, seed))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(None, 5) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
        [16, 17, 18, 19],
    ]


@given(st.integers(1, 80), small, st.integers(1, 30), small, st.integers(0, 20))
def test_steps_that_are_done_are_given_empty_and_the_others_as_they_were(
    pairs, micro_batch, step_pairs, ranks, done
):
    for rank in range(ranks):
        sampler = StepSampler(
            pairs,
            micro_batch=micro_batch,
            step_pairs=step_pairs,
            ranks=ranks,
            rank=rank,
            orders=orders_of(pairs, 3),
        )
        whole = list(sampler)
        windows = min(done * sampler.accumulation, len(whole))
        sampler.done = windows
        assert list(sampler) == [[]] * windows + whole[windows:]
        assert list(sampler) == whole  # of the next pass nothing is left out


def test_a_step_of_many_ranks_is_dealt_in_no_time():
    keys = range(10**12, 10**12 + 4096 * 64)
    start = time.process_time()
    (mine,) = (deal(keys, micro_batch=64, ranks=4096, rank=4095) for _ in range(1))
    assert time.process_time() - start < 0.5  # a sum over all shares before each took 20 s
    assert mine == [list(keys[-64:])]


@given(st.integers(1, 40), small, st.integers(1, 30))
def test_a_steps_pairs_are_the_same_on_any_number_of_ranks(pairs, micro_batch, step_pairs):
    def steps(ranks: int) -> list[set[int]]:
        plans = [
            StepSampler(
                pairs,
                micro_batch=micro_batch,
                step_pairs=step_pairs,
                ranks=ranks,
                rank=rank,
                orders=lambda epoch: KeyedPermutation(pairs, str(epoch)),
            )
            for rank in range(ranks)
        ]
        dealt, windows = [list(plan) for plan in plans], plans[0].accumulation
        return [
            {k for plan in dealt for batch in plan[i : i + windows] for k in batch if k >= 0}
            for i in range(0, len(dealt[0]), windows)
        ]

    assert steps(1) == steps(2) == steps(3) == steps(4)
    assert [len(step) for step in steps(3)[:-1]] == [step_pairs] * (len(steps(3)) - 1)


@given(st.integers(1, 40), small, st.integers(1, 30), small)
def test_a_stream_is_dealt_in_whole_windows(pairs, micro_batch, step_pairs, ranks):
    rows = [pair(n) for n in range(pairs)]
    made = [
        DealtStream(
            lambda: rows, micro_batch=micro_batch, step_pairs=step_pairs, ranks=ranks, rank=rank
        )
        for rank in range(ranks)
    ]
    streams = [list(one) for one in made]
    assert {len(stream) % made[0].accumulation for stream in streams} == {0}
    assert len({len(stream) for stream in streams}) == 1
    seen = [p.row for stream in streams for window in stream for p in window if p.row >= 0]
    assert sorted(seen) == list(range(pairs))


lengths = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30)), min_size=1
)


@given(lengths, st.integers(1, 5))
def test_a_cut_by_pairs_keeps_every_pair_and_the_limit(sizes, most_pairs):
    pairs = [pair(row, *size) for row, size in enumerate(sizes)]
    parts = cut(pairs, most_pairs=most_pairs, most_tokens=None, tokens_of=PADDED.tokens)
    assert sorted(p.row for part in parts for p in part) == list(range(len(pairs)))
    assert len(parts) == -(-len(pairs) // most_pairs)


@given(lengths, st.integers(1, 200), st.sampled_from([PADDED.tokens, SHARED.tokens]))
def test_a_cut_by_tokens_is_over_budget_only_where_one_pair_is(sizes, budget, tokens_of):
    pairs = [pair(row, *size) for row, size in enumerate(sizes)]
    parts = cut(pairs, most_pairs=1, most_tokens=budget, tokens_of=tokens_of)
    assert sorted(p.row for part in parts for p in part) == list(range(len(pairs)))
    assert all(len(part) == 1 or tokens_of(part) <= budget for part in parts)


def test_fillers_leave_when_there_is_a_real_pair_and_stay_when_there_is_none():
    options = {"most_pairs": 4, "most_tokens": None, "tokens_of": SHARED.tokens}
    assert cut([filler(pair(0)), pair(7)], **options) == [[pair(7)]]
    alone = cut([filler(pair(0)), filler(pair(1))], **options)
    assert [[p.row for p in part] for part in alone] == [[FILLER_ROW]]
