"""A null is a missing column, row by row: sets of several shapes give the rows of each alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from transformers import PreTrainedTokenizerFast

from counterpoint.data.formats import COLUMNS, to_preference_row
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.sources import dataset_from_rows, load
from counterpoint.doctor.survey import survey

USER, YES, NO = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": " yes"},
    {"role": "assistant", "content": " no"},
)
HH = "\n\nHuman: Hi\n\nAssistant:"
GPT = [{"from": "gpt", "value": " yes"}, {"from": "gpt", "value": " no"}]

SHAPES: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Hi", "chosen": " yes", "rejected": " no"},
    "text with weight": {"prompt": "Hi", "chosen": " yes", "rejected": " no", "weight": 2.0},
    "text with margin": {"prompt": "Hi", "chosen": " yes", "rejected": " no", "margin": 0.5},
    "transcripts": {"chosen": f"{HH} yes", "rejected": f"{HH} no"},
    "text with a shared start": {"chosen": "Hi yes", "rejected": "Hi no"},
    "messages": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "whole dialogues": {"chosen": [USER, YES], "rejected": [USER, NO]},
    "a text prompt and turns": {"prompt": "Hi", "chosen": [YES], "rejected": [NO]},
    "a system column": {"system": "Z", "prompt": "Hi", "chosen": " yes", "rejected": " no"},
    "tools": {
        "prompt": [USER],
        "chosen": [YES],
        "rejected": [NO],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {}}}}],
    },
    "template arguments": {
        "prompt": [USER],
        "chosen": [YES],
        "rejected": [NO],
        "chat_template_kwargs": {"thinking": True},
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": GPT[0],
        "rejected": GPT[1],
    },
    "OpenAI": {"messages": [USER], "chosen": YES, "rejected": NO},
    "Alpaca": {"instruction": "Hi", "input": "", "chosen": " yes", "rejected": " no"},
    "Alpaca, both in output": {"instruction": "Hi", "output": [" yes", " no"]},
    "Alpaca with history": {
        "instruction": "Hi",
        "history": [["a", "b"]],
        "output": [" yes", " no"],
    },
}


def alone(name: str) -> Any:
    return to_preference_row(SHAPES[name], 0)


def wide(name: str) -> dict[str, Any]:
    """The row with a null in every other column that there is."""
    return {**dict.fromkeys(COLUMNS), **SHAPES[name]}


@pytest.mark.parametrize("name", SHAPES)
def test_nulls_in_every_other_column_change_nothing(name: str) -> None:
    found, expected = to_preference_row(wide(name), 0), alone(name)
    for field in ("prompt", "chosen", "rejected", "tools", "template_kwargs", "weight", "margin"):
        assert getattr(found, field) == getattr(expected, field), field


def pairs_of(data: Any, tokenizer: PreTrainedTokenizerFast) -> list[tuple]:
    return sorted(
        (p.prompt, p.chosen, p.rejected, p.weight, p.margin)
        for p in iter_pairs(prepare(data, tokenizer))
    )


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_all_shapes_train_together_as_alone(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, streaming: bool
) -> None:
    paths = []
    for number, shape in enumerate(SHAPES.values()):
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_text(lines([shape, shape]))
    each = [pair for path in paths for pair in pairs_of(load(path), chatml_tokenizer)]
    together = load(paths, streaming=streaming)
    assert pairs_of(together, chatml_tokenizer) == sorted(each)
    found = survey(together, None, PrepareOptions(), name="train")
    assert (found.rows, found.usable) == (len(paths) * 2, len(paths) * 2)


JOINABLE = (
    ("text", "text with weight", "text with margin", "transcripts", "a system column", "Alpaca"),
    ("messages", "whole dialogues", "tools", "template arguments"),
    ("Alpaca, both in output", "Alpaca", "Alpaca with history", "text with a shared start"),
)
"""Shapes whose columns have the same types, so that ``datasets`` joins them itself."""


def as_streams(parts: list[Dataset]) -> list[IterableDataset]:
    return [part.to_iterable_dataset() for part in parts]


def unknown(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(_yield, gen_kwargs={"rows": rows})


def _yield(rows: list[dict]) -> Iterator[dict]:
    yield from rows


def interleaved(parts: list[Any]) -> Any:
    return interleave_datasets(parts, stopping_strategy="all_exhausted")


JOINS: dict[str, Callable[[list[Dataset]], Any]] = {
    "concatenated": concatenate_datasets,
    "interleaved": interleaved,
    "concatenated streams": lambda parts: concatenate_datasets(as_streams(parts)),
    "interleaved streams": lambda parts: interleaved(as_streams(parts)),
    "interleaved streams of no known columns": lambda parts: interleaved(
        [unknown(list(part)) for part in parts]
    ),
    "a list": lambda parts: [row for part in parts for row in part],
}


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("names", JOINABLE, ids=["text", "messages", "Alpaca"])
def test_sets_joined_in_any_way_give_the_pairs_of_each_alone(
    chatml_tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...], join: str
) -> None:
    parts = [dataset_from_rows([SHAPES[name]]) for name in names]
    each = [pair for part in parts for pair in pairs_of(part, chatml_tokenizer)]
    assert pairs_of(JOINS[join](parts), chatml_tokenizer) == sorted(each)


# What stands for nothing is counted

WITHOUT = {"prompt": "Ho", "chosen": " yes", "rejected": " no"}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_weight_that_one_file_lacks_is_1_and_counted(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, streaming: bool
) -> None:
    (tmp_path / "a.jsonl").write_text(lines([SHAPES["text with weight"]] * 2))
    (tmp_path / "b.jsonl").write_text(lines([WITHOUT] * 3))
    prepared = prepare(
        load([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], streaming=streaming),
        chatml_tokenizer,
        name="train",
    )
    assert [pair.weight for pair in iter_pairs(prepared)] == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert prepared.counts.as_dict()["absent_rows"] == {"weight": 3}
    assert "3 rows have no weight: it is 1 there" in prepared.counts.summary()


def test_a_prompt_found_in_the_sides_is_counted_where_others_have_a_column(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [WITHOUT, SHAPES["text with a shared start"], SHAPES["transcripts"]]
    counts = prepare(rows, chatml_tokenizer).counts
    # a transcript says itself where its prompt ends
    assert counts.absent_rows == {"prompt": 1}
    assert "1 rows have no prompt" in counts.summary()


def test_a_column_that_is_null_throughout_is_none(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prepared = prepare([{**WITHOUT, "weight": None}] * 2, chatml_tokenizer)
    assert "no weight" not in prepared.counts.summary()


def test_the_account_of_absent_cells_is_kept_by_a_run_that_goes_on(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    counts = prepare([{**WITHOUT, "weight": None}, WITHOUT], chatml_tokenizer).counts
    fresh = prepare([WITHOUT], chatml_tokenizer).counts
    fresh.load_state_dict(json.loads(json.dumps(counts.state_dict())))
    assert fresh.absent_rows == counts.absent_rows == {"weight": 2}


def test_csv_files_with_and_without_a_weight_train_together(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name, rows in (("a", [SHAPES["text with weight"]]), ("b", [WITHOUT])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    data = load([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert [pair.weight for pair in iter_pairs(prepare(data, chatml_tokenizer))] == [2.0, 1.0]


# Scored candidates

SCORED = {
    "objects": [
        {"prompt": "a", "candidates": [{"text": "1", "score": 1.0}, {"text": "0", "score": 0.0}]}
    ],
    "lists": [{"prompt": "b", "responses": ["1", "0"], "score": [1.0, 0.0]}],
    "a table": [{"prompt": "c", "text": t, "score": s} for t, s in (("1", 1.0), ("0", 0.0))],
    "a table of another name": [
        {"prompt": "d", "response": t, "score": s} for t, s in (("1", 1.0), ("0", 0.0))
    ],
}


@pytest.mark.parametrize("order", [list, reversed], ids=["in order", "reversed"])
@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_scored_candidates_make_the_pairs_of_each_alone(
    tmp_path: Path, streaming: bool, order: Any
) -> None:
    each, paths = [], []
    for name, rows in order(list(SCORED.items())):
        each += pairs_from_scored(rows).pairs
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text(lines(rows))
    made = pairs_from_scored(load(paths, streaming=streaming))
    assert sorted(made.pairs, key=str) == sorted(each, key=str)
    assert len(each) == 4
