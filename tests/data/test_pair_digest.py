"""The digest of pairs names what is trained, and nothing of how it came to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from counterpoint.data.counts import CLASSES, PrepareCounts, histogram
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_digest import PairDigest, pairs_digest
from counterpoint.data.prepare import Prepared, iter_pairs, prepare

ROWS = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f" It is {2 * n}.",
        "rejected": " Who knows?" * (n % 3 + 1),
    }
    for n in range(30)
]


@pytest.fixture
def ready(chatml_tokenizer: Any) -> Callable[..., Prepared]:
    """Prepare rows."""

    def make(rows: Any = ROWS, **options: Any) -> Prepared:
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        return prepare(data, chatml_tokenizer, PrepareOptions(**options))

    return make


def digest(prepared: Prepared) -> str:
    return prepared.counts.as_dict()["digest"]


def streamed(
    ready: Callable[..., Prepared], rows: list[dict[str, str]], **options: Any
) -> Prepared:
    stream = ready(Dataset.from_list(rows).to_iterable_dataset(num_shards=3), **options)
    assert sum(1 for _ in iter_pairs(stream)) > 0
    return stream


def test_cache_processes_and_streams_change_nothing(
    ready: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cached = ready(), ready()
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    others = [cached, ready(), ready(num_proc=2), streamed(ready, ROWS)]
    assert {digest(each) for each in others} == {digest(first)}
    assert all(each.counts.as_dict() == first.counts.as_dict() for each in others)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_were_dropped_change_nothing(
    ready: Callable[..., Prepared], stream: bool
) -> None:
    bad = {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}
    rows = [bad, *ROWS[:7], bad, *ROWS[7:]]
    found = (
        streamed(ready, rows, invalid_rows="drop") if stream else ready(rows, invalid_rows="drop")
    )
    assert found.counts.dropped == {"CP205": 2}
    assert digest(found) == digest(ready())
    assert found.counts.as_dict()["lengths"] == ready().counts.as_dict()["lengths"]


@pytest.mark.parametrize(
    "changed",
    [
        [*ROWS[1:], ROWS[0]],
        ROWS[1:],
        [{**ROWS[0], "chosen": ROWS[0]["rejected"], "rejected": ROWS[0]["chosen"]}, *ROWS[1:]],
        [{**row, "weight": 1.0 + (n == 3)} for n, row in enumerate(ROWS)],
        [{**row, "margin": 0.5 * (n == 3)} for n, row in enumerate(ROWS)],
    ],
    ids=["order", "fewer", "swapped", "weight", "margin"],
)
def test_whatever_training_would_see_changes_it(
    ready: Callable[..., Prepared], changed: list[dict[str, Any]]
) -> None:
    assert digest(ready(changed)) != digest(ready())


def test_the_digest_of_a_selection_is_that_of_its_rows(ready: Callable[..., Prepared]) -> None:
    pairs = ready().pairs
    assert pairs_digest(pairs) == digest(ready())
    assert pairs_digest(pairs.select(range(3, 20))) == digest(ready(ROWS[3:20]))


def test_an_account_that_goes_on_ends_like_an_unbroken_one_without_a_digest(
    ready: Callable[..., Prepared],
) -> None:
    bad = {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}
    options = {"invalid_rows": "drop", "max_completion_length": 4}
    whole = streamed(ready, [*ROWS, bad], **options).counts
    begun = streamed(ready, ROWS[:9], **options).counts
    rest = streamed(ready, [*ROWS[9:], bad], **options)
    counts = PrepareCounts.under(rest.options, "the data set")
    counts.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for record in rest.pairs:
        if record["problem"]:
            counts.drop(record["problem"].replace("row 21", "row 30"))
        else:
            counts.keep(record)
    assert counts.as_dict() == {**whole.as_dict(), "digest": None}


def test_a_boundary_between_two_pairs_that_moves_changes_it(
    ready: Callable[..., Prepared],
) -> None:
    """The same ids in the same order, dealt otherwise to the rows."""

    def of(first: list[int], second: list[int]) -> str:
        found = PairDigest()
        for ids in (first, second):
            part = {"prompt_ids": [1], "chosen_ids": ids, "rejected_ids": [2]}
            found.add_row({**part, "weight": 1.0, "margin": 0.0})
        return found.hexdigest()

    assert of([3, 4], [5]) != of([3], [4, 5])


def test_lengths_are_counted_after_cutting_and_the_limits_stand_beside(
    ready: Callable[..., Prepared],
) -> None:
    found = ready(max_completion_length=2)
    told = found.counts.as_dict()
    lengths = [len(pair["chosen_ids"]) for pair in found.pairs]
    assert told["lengths"]["chosen"]["edges"][: max(lengths) + 2] == list(range(max(lengths) + 2))
    assert told["lengths"]["chosen"]["counts"] == list(np.bincount(lengths))
    assert told["limits"] == {
        "max_length": 1024,
        "max_completion_length": 2,
        "truncation": "completion_end",
        "train_turns": "assistant",
        "gold": False,
    }


@pytest.mark.parametrize("lengths", [{}, {0: 3}, {1: 1}, {39: 2, 40: 1}, {7: 5, 12_345: 1}])
def test_a_histogram_loses_no_row_and_has_few_classes(lengths: dict[int, int]) -> None:
    found = histogram(lengths)
    edges, counts = found["edges"], found["counts"]
    assert sum(counts) == sum(lengths.values())
    assert len(edges) == len(counts) + 1 <= CLASSES + 1
    assert len(set(np.diff(edges))) == 1
    for length, rows in lengths.items():
        [place] = [i for i, c in enumerate(counts) if edges[i] <= length < edges[i + 1]]
        assert counts[place] >= rows
