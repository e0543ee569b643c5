"""Rows held out by prompt: no prompt on both sides, whatever the order of the rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.held_out import hold_out
from counterpoint.data.sources import dataset_from_rows
from counterpoint.errors import DataError


def rows_of(counts: list[int]) -> list[dict[str, Any]]:
    """Rows of so many prompts, each with so many of them."""
    return [
        {"prompt": f"What is {p}?", "chosen": f" It is {p}.", "rejected": f" {n} perhaps"}
        for p, count in enumerate(counts)
        for n in range(count)
    ]


def sides(rows: list[dict[str, Any]], share: float, seed: int = 0) -> tuple[set[str], set[str]]:
    """Rows to train on and rows held out, each as one text."""
    found = hold_out(Dataset.from_list(rows), share, seed)
    texts = [repr(sorted(row.items())) for row in rows]
    assert sorted([*found.trained, *found.held]) == list(range(len(rows)))
    return {texts[n] for n in found.trained}, {texts[n] for n in found.held}


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=20),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
    st.randoms(use_true_random=False),
)
def test_no_prompt_is_on_both_sides_and_the_order_of_rows_is_no_matter(
    counts: list[int], share: float, seed: int, shuffled: random.Random
) -> None:
    rows = rows_of(counts)
    found = hold_out(Dataset.from_list(rows), share, seed)
    trained = {rows[n]["prompt"] for n in found.trained}
    held = {rows[n]["prompt"] for n in found.held}
    assert trained
    assert held
    assert not trained & held
    assert (found.prompts, found.held_prompts) == (len(counts), len(held))
    wanted = min(max(1, round(share * len(rows))), len(rows) - 1)
    assert len(found.held) <= max(wanted, min(counts))
    moved = shuffled.sample(rows, len(rows))
    assert sides(moved, share, seed) == sides(rows, share, seed)


def test_of_single_rows_exactly_the_share_is_held_out_and_the_seed_says_which() -> None:
    rows = rows_of([1] * 200)
    found = hold_out(Dataset.from_list(rows), 0.05, 1)
    assert len(found.held) == 10
    assert found.in_words(0.05, 1) == (
        "eval_share=0.05 holds out 10 of 200 rows, 10 of 200 prompts (seed 1)"
    )
    assert list(hold_out(Dataset.from_list(rows), 0.05, 1).held) == list(found.held)
    assert list(hold_out(Dataset.from_list(rows), 0.05, 2).held) != list(found.held)


def test_the_same_question_in_another_shape_is_the_same_prompt() -> None:
    asked = "Why  is it so?"
    rows = [
        {"prompt": asked, "chosen": " a", "rejected": " b"},
        {"prompt": "Why is\nit so?", "chosen": " c", "rejected": " d"},
        {
            "conversations": [{"from": "human", "value": asked}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {
            "chosen": [
                {"role": "user", "content": [{"type": "text", "text": asked}]},
                {"role": "assistant", "content": "a"},
            ],
            "rejected": [
                {"role": "user", "content": [{"type": "text", "text": asked}]},
                {"role": "assistant", "content": "c"},
            ],
        },
        {"source": "Warum?", "chosen": "Why?", "rejected": "How?"},
    ]
    found = hold_out(dataset_from_rows(rows), 0.2, 0)
    assert found.prompts == 2
    assert list(found.held) == [4]


def test_pictures_are_part_of_what_is_asked() -> None:
    rows = [
        {"prompt": "What is it?", "images": [name], "chosen": "a", "rejected": side}
        for name in ("cat.png", "dog.png")
        for side in ("b", "c")
    ]
    found = hold_out(dataset_from_rows(rows), 0.5, 0)
    assert (found.prompts, len(found.held)) == (2, 2)
    assert {rows[n]["images"][0] for n in found.held} & {
        rows[n]["images"][0] for n in found.trained
    } == set()


def test_rows_that_cannot_be_read_stay_where_they_are_refused() -> None:
    rows = [*rows_of([1, 1, 1]), {"prompt": "?", "chosen": "", "rejected": "b"}]
    found = hold_out(Dataset.from_list(rows), 0.9, 0)
    assert 3 in found.trained
    assert len(found.held) == 2


def test_what_has_one_prompt_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"^CP238 mine: .*its 3 rows have 1 that can be read"):
        hold_out(Dataset.from_list(rows_of([3])), 0.5, 0, name="mine")
