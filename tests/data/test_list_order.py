"""The pairs of a list come one after another in an epoch, and the lists are shuffled."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.list_order import ListOrder
from counterpoint.data.options import PrepareOptions
from counterpoint.data.order import COMPUTED, LISTS_TOGETHER, order_of
from counterpoint.data.prepare import Prepared, prepare
from counterpoint.data.sampler import StepSampler

lengths = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def order_over(sizes: list[int]) -> ListOrder:
    return ListOrder(np.cumsum([0, *sizes[:-1]]), sum(sizes))


@given(lengths, st.integers(0, 99), st.integers(0, 3))
def test_lists_are_shuffled_and_none_is_taken_apart(
    sizes: list[int], seed: int, epoch: int
) -> None:
    keys = order_over(sizes).order(seed, epoch)(np.arange(sum(sizes)))
    begins = np.cumsum([0, *sizes[:-1]])
    shuffled = order_of(len(sizes), seed, epoch)(np.arange(len(sizes)))
    whole = [begins[one] + n for one in shuffled for n in range(sizes[one])]
    assert keys.tolist() == whole
    assert sorted(whole) == list(range(sum(sizes)))


@given(lengths, st.integers(0, 99), st.data())
def test_any_places_can_be_asked_for(sizes: list[int], seed: int, data: st.DataObject) -> None:
    order = order_over(sizes).order(seed, 1)
    whole = order(np.arange(sum(sizes)))
    some = data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1))
    assert order(np.array(some)).tolist() == whole[some].tolist()


def test_without_shuffling_the_sets_order_is_kept() -> None:
    assert order_over([2, 1, 3]).order(None, 0)(np.arange(6)).tolist() == list(range(6))


def rows(lists: int = 12) -> list[dict[str, Any]]:
    wrong = [" no", " never", "", " nothing"]
    return [
        {
            "prompt": f"What is {n}?",
            "chosen": f" It is {n}.",
            "rejected": [one or f" It is {n}. " * 99 for one in wrong[: 1 + n % 4]],
        }
        for n in range(lists)
    ]


def prepared(chatml_tokenizer: Any) -> Prepared:
    """Some completions are too long, and are left out of the middle of their lists."""
    options = PrepareOptions(max_length=64, truncation="drop")
    return prepare(rows(), chatml_tokenizer, options)


def prompts_in_order(found: Prepared, version: int) -> list[tuple[int, ...]]:
    places = np.arange(found.places)
    keys = found.order(3, 0, version=version)(places)
    return [tuple(found.pairs[int(key)]["prompt_ids"]) for key in keys]


def test_pairs_of_a_row_are_together_whatever_was_dropped(chatml_tokenizer: Any) -> None:
    found = prepared(chatml_tokenizer)
    assert found.counts.kept < found.counts.rows
    met = prompts_in_order(found, LISTS_TOGETHER)
    changes = sum(one != other for one, other in pairwise(met))
    assert changes == len(set(met)) - 1
    assert met != [tuple(row["prompt_ids"]) for row in found.pairs]


def test_a_run_of_an_earlier_version_keeps_its_order(chatml_tokenizer: Any) -> None:
    found = prepared(chatml_tokenizer)
    keys = found.order(3, 0, version=COMPUTED)(np.arange(found.places))
    assert keys.tolist() == order_of(len(found.pairs), 3, 0)(np.arange(len(found.pairs))).tolist()


def test_a_set_without_lists_has_the_order_that_it_had(chatml_tokenizer: Any) -> None:
    single = [{**row, "rejected": row["rejected"][:1]} for row in rows()]
    assert prepare(single, chatml_tokenizer).lists is None


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_together_take_each_pair_once(ranks: int) -> None:
    orders = partial(order_over([3, 1, 4, 2, 5]).order, 0)
    keys = [
        key
        for rank in range(ranks)
        for box in StepSampler(
            15, micro_batch=2, step_pairs=6, ranks=ranks, rank=rank, orders=orders
        )
        for key in box
        if key >= 0
    ]
    assert Counter(keys) == Counter(range(15))
