"""The rows of a miniature are the run's own, spread over the set, cut where it does no harm."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from counterpoint import CPOConfig, DataError
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import PAIR_COLUMNS
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.records import TokenPair
from counterpoint.smoke.rows import COMPLETION, PROMPT, own_pairs, prepared, shortened

ROWS = [
    {"prompt": f"Count to {n}:", "chosen": f" one to {n}", "rejected": f" {n}"} for n in range(100)
]
ids = st.lists(st.integers(3, 90), min_size=1, max_size=60)


def args(**options: Any) -> CPOConfig:
    return CPOConfig(output_dir="never-written", use_cpu=True, **options)


def test_rows_are_those_that_the_trainer_would_make_spread_over_the_set(chatml_tokenizer) -> None:
    whole = list(iter_pairs(prepare(ROWS, chatml_tokenizer, PrepareOptions.of(args()))))
    for rows in (ROWS, Dataset.from_list(ROWS)):
        some = own_pairs(rows, chatml_tokenizer, args(), 4)
        assert some == [whole[number] for number in (0, 25, 50, 75)]
    every = own_pairs(ROWS, chatml_tokenizer, args(), 1000)
    assert [pair.row for pair in every] == list(range(100))


def test_of_a_stream_the_first_rows_are_read_and_no_more(chatml_tokenizer) -> None:
    read = []

    def stream():
        for row in ROWS:
            read.append(row)
            yield row

    some = own_pairs(IterableDataset.from_generator(stream), chatml_tokenizer, args(), 3)
    assert [pair.row for pair in some] == [0, 1, 2]
    assert len(read) < 100


def test_a_row_that_is_no_pair_is_refused_by_its_own_number_or_left_out(chatml_tokenizer) -> None:
    rows = [dict(row) for row in ROWS]
    rows[50]["rejected"] = ""
    with pytest.raises(DataError, match="CP203 train, row 50"):
        own_pairs(rows, chatml_tokenizer, args(), 4)
    some = own_pairs(rows, chatml_tokenizer, args(invalid_rows="drop"), 4)
    assert [pair.row for pair in some] == [0, 25, 75]
    with pytest.raises(DataError, match="CP209 none of the 1 rows"):
        own_pairs(rows[50:51], chatml_tokenizer, args(invalid_rows="drop"), 4)
    with pytest.raises(DataError, match="CP201"):
        own_pairs([{"question": "?"}], chatml_tokenizer, args(), 4)


@given(ids, ids, ids, st.integers(0, 40))
def test_a_shortened_pair_is_short_and_its_completions_still_differ(
    prompt: list[int], chosen: list[int], rejected: list[int], common: int
) -> None:
    start = [1] * common
    pair = TokenPair(prompt, [*start, *chosen], [*start, *rejected], row=7, weight=0.5, margin=0.1)
    short = shortened(pair)
    assert 0 < len(short.chosen) <= COMPLETION
    assert 0 < len(short.rejected) <= COMPLETION
    assert len(short.prompt) <= PROMPT
    assert (short.row, short.weight, short.margin) == (7, 0.5, 0.1)
    if chosen[0] != rejected[0]:
        assert short.chosen != short.rejected


def test_a_pair_that_is_short_stays_as_it_is() -> None:
    pair = TokenPair([1, 2, 3], [4, 5], [4, 6], row=0)
    assert shortened(pair) == pair


def test_prepared_pairs_are_what_the_trainer_takes_for_prepared() -> None:
    pair = TokenPair([1], [2, 3], [4], row=9, weight=0.5, margin=0.25)
    table = prepared([pair])
    assert set(PAIR_COLUMNS) <= set(table.column_names)
    from counterpoint.data.pair_columns import to_pair

    assert to_pair(table[0]) == pair
