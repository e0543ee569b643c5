"""A row that lists rejected completions is as many pairs, which together count as one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Value
from datasets import List as ListOf
from transformers import PreTrainedTokenizerFast

from counterpoint.data.encoder import TextEncoder
from counterpoint.data.lanes import LanedStream, StreamPlace
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import Prepared, iter_pairs, lane_reader, prepare
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.several import one_rejected_a_row
from counterpoint.data.sources import load
from counterpoint.data.token_view import draw_tokens
from counterpoint.doctor.survey import survey
from counterpoint.errors import DataError
from counterpoint.records import TokenPair

ROWS: list[dict[str, Any]] = [
    {"prompt": "Say 1:", "chosen": " one", "rejected": [" two", " three", " four"], "weight": 3.0},
    {"prompt": "Say 2:", "chosen": " two", "rejected": [" one"], "weight": None},
    {"prompt": "Say 3:", "chosen": " three", "rejected": [" one", " two"], "weight": 0.5},
]
APART: list[dict[str, Any]] = [
    {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": one, "weight": weight}
    for row, weight in zip(ROWS, (3.0 / 3, 1.0, 0.5 / 2), strict=True)
    for one in row["rejected"]
]
"""What they are to be, written by hand but for the completions."""

DROP = PrepareOptions(invalid_rows="drop")


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]


DIALOGUES = [
    {"chosen": asked("Yes."), "rejected": [asked("No."), asked("Never.")]},
    {"chosen": asked("One."), "rejected": [asked("Two.")]},
]


def pairs_of(rows: Any, tokenizer: Any, options: PrepareOptions | None = None) -> list[TokenPair]:
    return list(iter_pairs(prepare(rows, tokenizer, options)))


def streamed(rows: list[dict[str, Any]], shards: int = 1) -> IterableDataset:
    return IterableDataset.from_generator(
        _yield, gen_kwargs={"parts": [rows[n::shards] for n in range(shards)]}
    )


def _yield(parts: list[list[dict[str, Any]]]) -> Any:
    for part in parts:
        yield from part


def test_each_completion_is_a_pair_of_a_share_of_the_weight(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = pairs_of(ROWS, chatml_tokenizer)
    assert found == pairs_of(APART, chatml_tokenizer)
    assert [pair.row for pair in found] == list(range(6))
    assert [pair.weight for pair in found] == [1.0, 1.0, 1.0, 1.0, 0.25, 0.25]


def test_every_row_counts_once_however_many_it_lists(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{**row, "weight": 1.0} for row in ROWS]
    assert sum(pair.weight for pair in pairs_of(rows, chatml_tokenizer)) == pytest.approx(3, abs=0)


def test_lists_of_dialogues_are_taken_apart_as_lists_of_texts_are(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    apart = [
        {"chosen": row["chosen"], "rejected": one, "weight": 1 / len(row["rejected"])}
        for row in DIALOGUES
        for one in row["rejected"]
    ]
    assert pairs_of(DIALOGUES, chatml_tokenizer) == pairs_of(apart, chatml_tokenizer)


def test_a_set_of_either_kind_of_row_is_read_row_by_row(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    turn = [{"role": "assistant", "content": "No."}]
    rows = [
        {"prompt": "Say 1:", "chosen": " one", "rejected": " two"},
        {"prompt": "Say 2:", "chosen": " two", "rejected": [" one", " three"]},
        {"prompt": asked("")[:1], "chosen": "Yes.", "rejected": "No."},
        {
            "prompt": asked("")[:1],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": turn,
        },
    ]
    for data in (rows, streamed(rows)):
        found = pairs_of(data, chatml_tokenizer)
        assert [pair.weight for pair in found] == [1.0, 0.5, 0.5, 1.0, 1.0]
        assert found[3].rejected == found[4].rejected


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "typed", "stream", "numpy"])
def test_every_way_to_bring_lists_gives_the_same_pairs(
    kind: str, chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{kind}"
    data: Any = Dataset.from_list(ROWS)
    if kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        data = load(path)
    elif kind == "parquet":
        data.to_parquet(str(path))
        data = load(path)
    elif kind == "saved":
        data.save_to_disk(str(path))
        data = load(path)
    elif kind == "typed":
        text = Value("large_string")
        data = data.cast(Features({**data.features, "rejected": ListOf(text)}))
    elif kind == "stream":
        data = streamed(ROWS)
    else:
        data = [{**row, "rejected": np.array(row["rejected"], dtype=object)} for row in ROWS]
    assert pairs_of(data, chatml_tokenizer) == pairs_of(APART, chatml_tokenizer)


def test_the_digest_is_that_of_the_pairs(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    digests = {
        prepare(rows, chatml_tokenizer).counts.as_dict()["digest"]
        for rows in (ROWS, APART, Dataset.from_list(ROWS))
    }
    stream = prepare(streamed(ROWS), chatml_tokenizer)
    assert len(list(iter_pairs(stream))) == 6
    assert digests == {stream.counts.as_dict()["digest"]}


def test_a_second_start_reads_the_cache(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path))
    first = pairs_of(ROWS, chatml_tokenizer)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    assert len(files) == 1
    assert pairs_of(ROWS, chatml_tokenizer) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")} == files


@pytest.mark.parametrize("rows", [ROWS, streamed(ROWS)], ids=["set", "stream"])
def test_the_account_tells_rows_from_pairs(
    rows: Any, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare(rows, chatml_tokenizer)
    list(iter_pairs(prepared))
    counts = prepared.counts
    assert (counts.rows, counts.kept, counts.listed_rows, counts.listed_pairs) == (6, 6, 3, 6)
    assert "3 rows list their rejected completions: 6 rows of one each" in counts.summary()


def test_sets_without_lists_are_returned_as_they_are() -> None:
    for row in (APART[0], {"prompt": "", "chosen": asked("a"), "rejected": asked("b")}):
        data = Dataset.from_list([row])
        assert one_rejected_a_row(data) is data


UNUSABLE: dict[str, tuple[list[Any], str]] = {
    "empty": ([], "is an empty list"),
    "a blank": ([" two", " "], "a blank completion at place 1"),
    "the chosen": ([" two", " one"], "the chosen completion at place 1"),
    "a number": ([" two", 3], "a value of type int at place 1"),
    "a null": ([" two", None], "a value of type NoneType at place 1"),
    "texts and messages": ([" two", asked("No.")], "texts beside messages"),
}


@pytest.mark.parametrize("way", ["set", "stream"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_list_that_cannot_be_used_is_one_row_that_says_why(
    name: str, way: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    listed, said = UNUSABLE[name]
    rows = [*ROWS, {"prompt": "Say 1:", "chosen": " one", "rejected": listed, "weight": 1.0}]
    data = streamed(rows) if way == "stream" else rows
    with pytest.raises(DataError, match=f"CP233.*row 6, field rejected: .*{said}") as caught:
        pairs_of(data, chatml_tokenizer)
    assert "It is row 3 in the set as it is given." in str(caught.value)
    prepared = prepare(streamed(rows) if way == "stream" else rows, chatml_tokenizer, DROP)
    assert list(iter_pairs(prepared)) == pairs_of(APART, chatml_tokenizer)
    assert prepared.counts.dropped == {"CP233": 1}
    assert prepared.counts.listed_rows == 3


def test_several_chosen_completions_are_refused_with_what_to_do(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "Say 1:", "chosen": [" one"], "rejected": [" two", " three"]}]
    with pytest.raises(DataError, match=r"CP234.*Give a row for each chosen"):
        pairs_of(rows, chatml_tokenizer)


def test_a_completion_that_is_dropped_leaves_the_others_their_share(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "Say 1:", "chosen": " one", "rejected": [" two", " word" * 60]}]
    prepared = prepare(rows, chatml_tokenizer, PrepareOptions(max_length=30, truncation="drop"))
    assert [pair.weight for pair in iter_pairs(prepared)] == [0.5]
    assert prepared.counts.dropped == {"CP204": 1}
    said = prepared.counts.examples["CP204"]
    assert said.endswith("It is rejected[1] of row 0 in the set as it is given.")


@pytest.mark.parametrize("after", range(7))
def test_a_stream_resumes_inside_a_list(
    after: int, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare(streamed(ROWS), chatml_tokenizer)
    whole = list(iter_pairs(prepared))
    again = prepare(streamed(ROWS), chatml_tokenizer)
    assert list(iter_pairs(again, after=after)) == whole[after:]


def test_lanes_of_a_stream_hold_each_pair_once(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prepared: Prepared = prepare(streamed(ROWS, shards=3), chatml_tokenizer)
    laned = LanedStream(
        lane_reader(prepared, 3),
        3,
        lambda: StreamPlace.first(3, counted=True),
        prepared.counts,
        micro_batch=2,
        step_pairs=2,
    )
    found = [pair for window in laned for pair in window]
    assert len({pair.row for pair in found}) == len(found) == 6
    assert sorted(pair.weight for pair in found) == [0.25, 0.25, 1.0, 1.0, 1.0, 1.0]
    assert prepared.counts.listed_rows == 3


def test_tokens_say_where_a_pair_stands(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = one_rejected_a_row(Dataset.from_list(ROWS))
    limits = Limits(64, None, "completion_end")
    found = tokens_of_row(rows[4], 4, TextEncoder(chatml_tokenizer), limits)
    assert found.weight == 0.25
    drawn = draw_tokens(found, name="rows")
    assert "row 4 of rows\n  It is rejected[0] of row 2 in the set as it is given.\n" in drawn


def test_the_doctor_counts_rows_and_pairs_and_is_not_surprised_by_their_prompts(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    for rows in (ROWS, streamed(ROWS)):
        found = survey(rows, chatml_tokenizer, PrepareOptions(), name="train")
        assert (found.usable, found.listed_rows, found.listed_pairs) == (6, 3, 6)
        assert found.consistency.prompts == []


def test_pictures_go_with_every_completion_of_their_row() -> None:
    rows = [{**ROWS[0], "images": [{"bytes": b"some", "path": None}]}]
    features = Features(
        {**Dataset.from_list(rows).features, "images": ListOf(datasets.Image(decode=False))}
    )
    found = one_rejected_a_row(Dataset.from_list(rows, features=features))
    assert [row["images"] for row in found] == [rows[0]["images"]] * 3
