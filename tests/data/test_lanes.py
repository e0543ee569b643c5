"""A stream in lanes: a step is the same pairs on any number of ranks, and each reads its own."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from counterpoint import DataError, ranks
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.lanes import LanedStream, StreamPlace, check_lanes, turns
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import lane_reader, lanes_in_a_row, prepare
from counterpoint.records import FILLER_ROW, TokenPair
from tests.ranks_in_threads import as_ranks

STEP = 12
SIZES = [7, 0, 13, 1, 5, 30, 2, 9]
"""Rows of each lane; every fifth row is none."""


class Shards:
    """Lanes of numbered rows, and who has read which of them."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.read: list[tuple[int, int]] = []

    def pull(self, lane: int, after: int, counts: PrepareCounts) -> Iterator[TokenPair | None]:
        for place in range(after, self.sizes[lane]):
            self.read.append((ranks.rank(), lane))
            row = place * len(self.sizes) + lane
            counts.rows += 1
            if place % 5 == 4:
                yield None
                continue
            counts.kept += 1
            counts.lengths["prompt"][lane + 1] += 1
            yield TokenPair([1] * (lane + 1), [2], [3], row)

    @property
    def rows(self) -> list[int]:
        return [
            place * len(self.sizes) + lane
            for lane, size in enumerate(self.sizes)
            for place in range(size)
            if place % 5 != 4
        ]


def stream_of(
    shards: Shards, number: int, rank: int, place: StreamPlace | None = None
) -> tuple[LanedStream, StreamPlace]:
    lanes = len(shards.sizes)
    begun = place or StreamPlace.first(lanes, counted=True)
    micro_batch = {1: 2, 2: 2, 3: 2, 4: 1}[number]
    stream = LanedStream(
        shards.pull,
        lanes,
        lambda: begun,
        PrepareCounts("rows", digest=None),
        micro_batch=micro_batch,
        step_pairs=STEP,
        ranks=number,
        rank=rank,
    )
    return stream, begun


def steps_on(shards: Shards, number: int, *, stop: int | None = None, begun: Any = None) -> Any:
    """The rows of each step, on so many ranks; where they stopped, and what they counted."""

    def one() -> Any:
        place = None if begun is None else StreamPlace(**json.loads(json.dumps(begun)))
        stream, place = stream_of(shards, number, ranks.rank(), place)
        windows, steps = iter(stream), []
        while len(steps) != stop:
            step = [window for _, window in zip(range(stream.accumulation), windows, strict=False)]
            if not step:
                break
            assert len(step) == stream.accumulation
            assert all(step)  # no window is empty: a filler keeps the rank in step
            steps.append([pair.row for window in step for pair in window])
        return steps, place.state_dict(), stream.counts

    found = [one()] if number == 1 else as_ranks(number, one)
    assert len({len(steps) for steps, _, _ in found}) == 1
    assert all(place == found[0][1] for _, place, _ in found)
    assert all(counts == found[0][2] for _, _, counts in found)
    together = zip(*(steps for steps, _, _ in found), strict=True)
    sets = [sorted(row for rank in step for row in rank if row != FILLER_ROW) for step in together]
    return sets, found[0][1], found[0][2]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_step_is_the_same_pairs_on_any_number_of_ranks(number: int):
    alone, _, counted = steps_on(Shards(SIZES), 1)
    shards = Shards(SIZES)
    steps, _, counts = steps_on(shards, number)
    assert steps == alone
    assert sorted(row for step in steps for row in step) == sorted(shards.rows)
    assert [len(step) for step in steps[:-1]] == [STEP] * (len(steps) - 1)
    assert counts == counted
    assert (counts.rows, counts.kept) == (sum(SIZES), len(shards.rows))
    readers = Counter(lane for _, lane in set(shards.read))
    divides = len(SIZES) % number == 0
    assert set(readers.values()) == ({1} if divides else {number})


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 3), (3, 2)])
def test_a_pass_is_resumed_on_another_number_of_ranks(before: int, after: int):
    whole, _, counted = steps_on(Shards(SIZES), 1)
    for stop in range(len(whole)):
        first, place, counts = steps_on(Shards(SIZES), before, stop=stop)
        assert first == whole[:stop]
        shards = Shards(SIZES)
        rest, _, more = steps_on(shards, after, begun=place)
        assert rest == whole[stop:]
        counts.add(more)
        assert counts == counted
        again = sum(SIZES) - sum(place["rows"])  # and nothing is read twice by the same rank
        assert len(shards.read) == again * (1 if len(SIZES) % after == 0 else after)


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.sampled_from([2, 4]))
def test_lanes_of_any_lengths_give_each_pair_once(sizes: list[int], number: int):
    if not sum(sizes):
        return
    shards = Shards(sizes)
    steps, _, _ = steps_on(shards, number)
    assert steps == steps_on(Shards(sizes), 1)[0]
    assert sorted(row for step in steps for row in step) == sorted(shards.rows)


def test_turns_go_round_and_pass_over_lanes_that_have_ended():
    assert turns(5, 1, {}, 3) == [1, 2, 0, 1, 2]
    assert turns(6, 0, {1: 1}, 3) == [0, 1, 2, 0, 2, 0]
    assert turns(6, 2, {0: 0, 1: 2, 2: 1}, 3) == [2, 1, 1]
    assert turns(3, 0, {0: 0, 1: 0}, 2) == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_without_a_pair_is_refused_on_every_rank(number: int):
    def one() -> Any:
        return list(stream_of(Shards([0, 0, 0, 0]), number, ranks.rank())[0])

    if number == 1:
        with pytest.raises(DataError, match=r"^CP209 rows has no rows"):
            one()
        return
    found = as_ranks(number, one)
    assert all(text.startswith("CP209 rows has no rows") for text in found)


def test_a_row_that_one_rank_cannot_use_stops_all_with_the_same_words(chatml_tokenizer: Any):
    bad = {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}
    rows = [{"prompt": f"{n}?", "chosen": f" {n}.", "rejected": " No."} for n in range(12)]
    stream = Dataset.from_list([*rows[:10], bad, *rows[10:]]).to_iterable_dataset(num_shards=4)

    def one() -> Any:
        prepared = prepare(stream, chatml_tokenizer, PrepareOptions(), name="train")
        laned = LanedStream(
            lane_reader(prepared, 4),
            4,
            lambda: StreamPlace.first(4, counted=True),
            prepared.counts,
            micro_batch=2,
            step_pairs=4,
            ranks=2,
            rank=ranks.rank(),
        )
        return list(laned)

    found = as_ranks(2, one)
    assert found[0] == found[1]
    assert found[0].startswith("CP205 train, row ")


def test_rows_have_numbers_of_their_own_and_files_are_lanes(chatml_tokenizer: Any, tmp_path: Any):
    from counterpoint.data.sources import load

    rows = [{"prompt": f"{n}?", "chosen": f" {n}.", "rejected": " No."} for n in range(9)]
    for number in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in rows[number::3])
        (tmp_path / f"{number}.jsonl").write_text(lines)
    stream = load(tmp_path, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert stream.num_shards == 3
    prepared = prepare(stream, chatml_tokenizer, PrepareOptions())
    pull = lane_reader(prepared, 3)
    found = {lane: [*pull(lane, 0, prepared.counts)] for lane in range(3)}
    assert {lane: [pair.row for pair in pairs] for lane, pairs in found.items()} == {
        0: [0, 3, 6], 1: [1, 4, 7], 2: [2, 5, 8]
    }  # fmt: skip
    assert [pair.row for pair in pull(1, 2, prepared.counts)] == [7]
    fresh = prepare(stream, chatml_tokenizer, PrepareOptions())
    assert [pair.row for pair in lanes_in_a_row(fresh, 3)] == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert fresh.counts.kept == 9


def test_sets_cut_from_one_stream_have_no_row_in_common(chatml_tokenizer: Any):
    rows = [{"prompt": f"{n}?", "chosen": f" {n}.", "rejected": " No."} for n in range(24)]
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=4)
    parts = [
        {tuple(pair.prompt) for pair in lanes_in_a_row(prepare(part, chatml_tokenizer), 4)}
        for part in (stream.take(8), stream.skip(8))
    ]
    assert [len(part) for part in parts] == [8, 16]
    assert not parts[0] & parts[1]


def test_more_lanes_than_shards_are_refused():
    with pytest.raises(DataError, match=r"^CP225 stream_shards=8, but .* has 3 shards"):
        check_lanes(3, 8, 1)


@pytest.mark.parametrize(
    ("shards", "lanes", "number", "said"),
    [(8, 1, 2, "stream_shards=8"), (9, 9, 2, "stream_shards=8"), (8, 8, 2, ""), (8, 1, 1, ""),
     (1, 1, 2, "It has 1 of them")],
)  # fmt: skip
def test_the_log_says_where_ranks_read_what_they_do_not_train(
    shards: int, lanes: int, number: int, said: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "counterpoint"):
        check_lanes(shards, lanes, number)
    assert (said in caplog.text) if said else not caplog.text
