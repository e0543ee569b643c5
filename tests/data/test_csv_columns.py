"""A column of a CSV file is all text or all lists, and what pandas wrote of lists is read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.sources import load
from counterpoint.doctor.survey import survey
from counterpoint.errors import DataError
from counterpoint.smoke.rows import own_pairs


def turns(role: str, *texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for text in texts]


CHAT = [
    {
        "prompt": turns("user", f'It\'s {n}?\n"Yes" é国'),
        "chosen": turns("assistant", f"It's {n}."),
        "rejected": turns("assistant", "no\\n"),
    }
    for n in range(4)
]
CURRENCY = '{"from": "EUR", "to": "USD", "value": 3}'


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in path.name else ","
    writer = csv.DictWriter(file, names, delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows(rows)
    content = file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def spelled(rows: list[dict[str, Any]], spell: Any) -> list[dict[str, Any]]:
    return [{name: spell(cell) for name, cell in row.items()} for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
@pytest.mark.parametrize("spell", [repr, json.dumps, lambda cell: f" {tuple(cell)}\n"])
def test_lists_of_messages_are_read_however_they_were_written(
    chatml_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    spell: Any,
    name: str,
    streaming: bool,
) -> None:
    data = load(write(tmp_path / name, spelled(CHAT, spell)), streaming=streaming)
    assert list(data) == CHAT
    found = list(iter_pairs(prepare(data, chatml_tokenizer)))
    assert found == list(iter_pairs(prepare(CHAT, chatml_tokenizer)))


def test_what_pandas_wrote_is_read(tmp_path: Path) -> None:
    pd.DataFrame(CHAT).to_csv(tmp_path / "rows.csv", index=False)
    data = load(tmp_path / "rows.csv")
    assert list(data) == CHAT
    assert survey(data, None, PrepareOptions(), name="train").usable == 4


COLUMNS: dict[str, tuple[list[Any], list[Any]]] = {
    "single messages": (
        ["{'from': 'gpt', 'value': 'a'}", '{"from": "gpt", "value": "b"}'],
        [{"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}],
    ),
    "JSON and literals": (
        ["[{'role': 'user', 'content': None, 'tool_calls': []}]", '[{"role":"tool","content":""}]'],
        [
            [{"role": "user", "content": None, "tool_calls": []}],
            [{"role": "tool", "content": ""}],
        ],
    ),
    "blank beside messages": (
        ["", "  ", "[{'role': 'user', 'content': 'a'}]"],
        [None, None, [{"role": "user", "content": "a"}]],
    ),
    "texts that are objects": ([CURRENCY, CURRENCY], [CURRENCY, CURRENCY]),
    "texts that are objects of texts": (['{"from": "EUR", "value": "3"}'] * 2,) * 2,
    "texts that are lists": (["[1, 2]", "['a']", "[{'a': 1}]"],) * 2,
    "texts of unknown speakers": (['[{"role": "manager", "content": "Bob"}]'] * 2,) * 2,
    "texts about messages": (["Write {'role': 'user'}", "[{'role': 'user', 'content': 'a'}]"],) * 2,
    "a few messages among texts": (
        ["a", "b", "[{'role': 'user', 'content': 'c'}]", "[{'role': 'user', 'content': "],
    )
    * 2,
    "blank": (["", " "],) * 2,
    "a number": (["1", "2"],) * 2,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("cells", "read"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_is_judged_as_a_whole(
    tmp_path: Path, cells: list[str], read: list[Any], streaming: bool
) -> None:
    rows = [{"prompt": "Hi", "chosen": cell} for cell in cells]
    data = load(write(tmp_path / "rows.csv", rows), streaming=streaming)
    assert [row["chosen"] for row in data] == read


def test_the_whole_file_decides_not_its_first_rows(tmp_path: Path) -> None:
    cells = ["[{'role': 'user', 'content': 'a'}]"] * 3 + ["a"] * 3
    path = write(tmp_path / "rows.csv", [{"prompt": cell} for cell in cells])
    assert [row["prompt"] for row in load(path)] == cells
    path = write(tmp_path / "more.csv", [{"prompt": cell} for cell in [cells[0], *cells]])
    with pytest.raises(DataError, match=r"CP223 .*row 4 \(line 6\), field prompt: 4 of the column"):
        load(path)


OTHER_LISTS: dict[str, tuple[str, Any]] = {
    "tools": ("[{'type': 'function', 'strict': True}]", [{"type": "function", "strict": True}]),
    "chat_template_kwargs": ("{'thinking': False}", {"thinking": False}),
    "output": ("['it is', 'no']", ["it is", "no"]),
    "history": ("[['a', 'b']]", [["a", "b"]]),
    "responses": ("[' 4', ' 5']", [" 4", " 5"]),
    "score": ("[1.0, 0]", [1.0, 0]),
}


@pytest.mark.parametrize(("name", "cell"), OTHER_LISTS.items())
def test_columns_of_other_lists_are_read_by_their_names(
    tmp_path: Path, name: str, cell: tuple[str, Any]
) -> None:
    written, read = cell
    path = write(tmp_path / "rows.csv", [{"a": "b", name: written}, {"a": "b", name: ""}])
    assert [row[name] for row in load(path)] == [read, None]


def test_alpaca_s_answers_and_tools_train_from_csv(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    row = {"instruction": "Hi", "history": [["a", "b"]], "output": [" yes", " no"]}
    row |= {"chat_template_kwargs": {"thinking": True}}
    path = write(tmp_path / "rows.csv", [{k: str(v) for k, v in row.items()}] * 2)
    found = list(iter_pairs(prepare(load(path), chatml_tokenizer)))
    assert found == list(iter_pairs(prepare([row] * 2, chatml_tokenizer)))


def test_candidates_and_scores_are_read_from_csv(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2 =", "responses": [" 4", " 5"], "score": [1.0, 0.5]}
    path = write(tmp_path / "rows.csv", [{k: str(v) for k, v in row.items()}])
    assert pairs_from_scored(load(path)).pairs == pairs_from_scored([row]).pairs


# What is refused

GOOD = str(turns("user", "a"))
ODD = {
    "cut off": (GOOD[:-9], "CP223", "cut off"),
    "a call": ("[{'role': 'user', 'content': open('x')}]", "CP223", "'open' is no value"),
    "plain text": ("Hello", "CP223", "it is plain text"),
    "no content": ("[{'role': 'user'}]", "CP223", "it is not messages"),
    "an answer of JSON": (CURRENCY, "CP223", "it is plain text"),
    "nested": ("[" * 99 + "{'role': 'user'", "CP223", "nested more than 64 deep"),
    "numpy's": (str(np.array(turns("user", "a", "b"), dtype=object)), "CP224", r"\.tolist\(\)"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("cell", "code", "said"), ODD.values(), ids=ODD)
def test_a_cell_unlike_the_rest_of_its_column_is_named(
    tmp_path: Path, cell: str, code: str, said: str, streaming: bool
) -> None:
    rows = [{"prompt": one, "chosen": "\n"} for one in (GOOD, GOOD, cell, GOOD)]
    path = write(tmp_path / "rows.csv", rows)
    # lines as an editor counts them: the cell before spans two
    with pytest.raises(DataError, match=rf"{code} .*row 2 \(line 7\), field prompt.*{said}"):
        list(load(path, streaming=streaming))


def test_a_csv_that_pandas_made_of_parquet_names_numpy(tmp_path: Path) -> None:
    rows = [{**row, "prompt": [*turns("system", "Z"), *row["prompt"]]} for row in CHAT]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    pd.read_parquet(tmp_path / "rows.parquet").to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"CP224 .*row 0 \(line 3\), field prompt.*JSON lines"):
        load(tmp_path / "rows.csv")


def test_a_column_without_a_meaning_may_hold_what_it_will(tmp_path: Path) -> None:
    cells = [GOOD, GOOD, GOOD[:-9]]
    path = write(tmp_path / "rows.csv", [{"prompt": "a", "raw_log": cell} for cell in cells])
    assert [row["raw_log"] for row in load(path)] == cells


# Sets that datasets read from CSV


def opened(path: Path, folder: Path) -> Dataset:
    found = datasets.load_dataset(
        "csv", data_files=str(path), split="train", cache_dir=str(folder / "cache")
    )
    assert isinstance(found, Dataset)
    return found


def test_a_set_that_datasets_read_from_csv_gives_the_rows_of_the_file(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{**row, "weight": 0.5, "note": "x"} for row in spelled(CHAT, repr)]
    rows[0]["system"] = "Z"
    path = write(tmp_path / "rows.csv", rows)
    data = opened(path, tmp_path)
    expected = list(iter_pairs(prepare(load(path), chatml_tokenizer)))
    args = CPOConfig(output_dir="unused", report_to=[], use_cpu=True)
    assert [pair.weight for pair in expected] == [0.5] * 4
    for given in (data, data.with_format("torch"), data.shuffle(seed=1)):
        found = list(iter_pairs(prepare(given, chatml_tokenizer)))
        assert sorted(map(str, [p.prompt for p in found])) == sorted(
            map(str, [p.prompt for p in expected])
        )
    assert list(iter_pairs(prepare(data, chatml_tokenizer))) == expected
    assert own_pairs(data, chatml_tokenizer, args, 4) == expected
    assert survey(data, chatml_tokenizer, PrepareOptions(), name="train").seen["CW220"].count == 0


def test_its_odd_cell_is_named_too(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cells = [{"prompt": one, "chosen": "a", "rejected": "b"} for one in (GOOD, GOOD, GOOD[:-9])]
    data = opened(write(tmp_path / "rows.csv", cells), tmp_path)
    with pytest.raises(DataError, match=r"CP223 train, row 2, field prompt: 2 of"):
        prepare(data, chatml_tokenizer, name="train")
    [failure] = survey(data, None, PrepareOptions(), name="train").failures
    assert failure.code == "CP223"


def test_its_texts_and_candidates_are_read_as_the_file_s(tmp_path: Path) -> None:
    texts = [{"prompt": "a", "chosen": CURRENCY, "rejected": "b"}]
    data = opened(write(tmp_path / "texts.csv", texts), tmp_path)
    assert lists_of_csv(data) is data
    row = {"prompt": "2 + 2 =", "responses": [" 4", " 5"], "score": [1.0, 0.5]}
    path = write(tmp_path / "scored.csv", [{k: str(v) for k, v in row.items()}])
    assert pairs_from_scored(opened(path, tmp_path)).pairs == pairs_from_scored([row]).pairs


# Elsewhere text is text

AS_TEXT = spelled(CHAT, repr)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_no_other_kind_of_file_turns_text_into_messages(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    data, path = Dataset.from_list(AS_TEXT), tmp_path / f"rows.{kind}"
    data.to_parquet(path) if kind == "parquet" else data.to_json(path, lines=kind == "jsonl")
    assert list(load(path)) == AS_TEXT
    prepared = prepare(load(path), chatml_tokenizer)
    [first, *_] = iter_pairs(prepared)
    assert chatml_tokenizer.decode(first.prompt) == AS_TEXT[0]["prompt"]
    # but it is said
    assert prepared.counts.as_dict()["spelled_rows"] == 4
    assert "4 rows hold text that spells messages" in prepared.counts.summary()
    assert survey(load(path), None, PrepareOptions(), name="train").seen["CW220"].count == 4


def test_answers_that_only_look_like_it_are_not_counted(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "Convert.", "chosen": CURRENCY, "rejected": "[1, 2]"}]
    assert prepare(rows, chatml_tokenizer).counts.spelled_rows == 0
