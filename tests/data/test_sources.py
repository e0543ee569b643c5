"""Data sets from everywhere, and errors that say where a file broke."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.sources import dataset_from_rows, load, pick_split
from counterpoint.errors import DataError

ROWS = [
    {"prompt": "a", "chosen": "b é国", "rejected": "c"},
    {"prompt": "NA", "chosen": "null", "rejected": "1,\n2"},
]
CSV = 'prompt,chosen,rejected\na,b é国,c\nNA,null,"1,\n2"\n'


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FILES = {
    "rows.jsonl": lambda: lines(ROWS).encode(),
    "rows.ndjson": lambda: ("\n" + lines(ROWS)).encode(),
    "bom.jsonl": lambda: lines(ROWS).encode("utf-8-sig"),
    "lines.json": lambda: lines(ROWS).encode(),
    "rows.json": lambda: json.dumps(ROWS, indent=2).encode(),
    "rows.csv": CSV.encode,
    "rows.CSV": lambda: CSV.encode("utf-8-sig"),
    "rows.tsv": CSV.replace("1,\n2", "1;\n2").replace(",", "\t").replace(";", ",").encode,
    "rows.jsonl.gz": lambda: gzip.compress(lines(ROWS).encode()),
    "rows.json.bz2": lambda: bz2.compress(json.dumps(ROWS).encode()),
    "rows.csv.xz": lambda: lzma.compress(CSV.encode()),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, streaming: bool) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    data = load(tmp_path / name, streaming=streaming)
    assert isinstance(data, IterableDataset if streaming else Dataset)
    assert list(data) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_and_several_files_are_read_in_order(tmp_path: Path, streaming: bool) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(lines(ROWS[:1]))
    data = load([tmp_path / "a.parquet", str(tmp_path / "b.jsonl")], streaming=streaming)
    assert list(data) == [*ROWS, ROWS[0]]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_folders_are_opened(tmp_path: Path, streaming: bool) -> None:
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "two")
    assert list(load(tmp_path / "one", streaming=streaming)) == ROWS
    assert list(load(str(tmp_path / "two"), split="test", streaming=streaming)) == ROWS[1:]
    assert set(load(tmp_path / "two", streaming=streaming)) == {"train", "test"}


def test_loose_files_of_a_folder_are_split_by_name(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text(lines(ROWS[:1]))
    (tmp_path / "train-1.jsonl").write_text(lines(ROWS[1:]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS[:1]))
    (tmp_path / "notes.txt").write_text("no data")
    data = load(tmp_path)
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "test": 1}
    assert list(load(tmp_path, split="test")) == ROWS[:1]


def test_hub_ids_carry_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(*args: Any, **kwargs: Any) -> Dataset:
        asked.append((*args, kwargs["split"], kwargs["streaming"]))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    load("owner/name")
    load("owner/name:test")
    load("owner/name:en:train[10:20]", streaming=True)
    load("owner/name", split="train", config="de")
    assert asked == [
        ("owner/name", None, None, False),
        ("owner/name", None, "test", False),
        ("owner/name", "en", "train[10:20]", True),
        ("owner/name", "de", "train", False),
    ]


def test_what_the_hub_client_raises_becomes_one_coded_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hub(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match=r"CP211 'owner/name'.*ConnectionError: no route to host"):
        load("owner/name")


# Rows of uneven shape


def test_rows_need_not_agree_in_keys_or_types() -> None:
    rows = [
        {"chosen": "text", "tools": None},
        {"chosen": [{"role": "user", "content": "x"}], "weight": 1},
        {"chosen": "42", "weight": 2.5, "late": [1, "a", None]},
        {"chosen": '{"x": 1}', "weight": 2.5},
    ]
    read = list(dataset_from_rows(rows))
    assert [row["chosen"] for row in read] == [row["chosen"] for row in rows]
    assert [row["weight"] for row in read] == [None, 1, 2.5, 2.5]
    assert read[2]["late"] == [1, "a", None]


def test_objects_in_objects_keep_their_keys_and_their_order() -> None:
    tools = [[{"f": {"b": 1, "a": 2}}], [{"f": {"a": 1.5}}]]
    read = dataset_from_rows([{"tools": cell} for cell in tools])["tools"]
    assert [json.dumps(cell) for cell in read] == [json.dumps(cell) for cell in tools]


def test_files_whose_parts_disagree_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{"chosen": "text"}]))
    (tmp_path / "b.jsonl").write_text(lines([{"chosen": [{"role": "user", "content": "x"}]}]))
    read = [row["chosen"] for row in load([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])]
    assert read == ["text", [{"role": "user", "content": "x"}]]


def same(read: Any, written: Any) -> bool:
    """Whether a value came back, but for nulls that Arrow adds to objects."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(
            same(read.get(key), written.get(key)) for key in {*read, *written}
        )
    if isinstance(written, list):
        return (
            isinstance(read, list)
            and len(read) == len(written)
            and all(same(r, w) for r, w in zip(read, written, strict=True))
        )
    return bool(read == written) and isinstance(read, str) == isinstance(written, str)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text('ab1國"{}', max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["chosen", "rejected"]), VALUES), min_size=1))
def test_any_rows_of_json_survive(rows: list[dict]) -> None:
    if not any(rows):
        return
    read = list(dataset_from_rows(rows))
    assert all(same(r, w) for r, w in zip(read, rows, strict=True)), read


# What is refused

GOOD_LINE = json.dumps(ROWS[0]).encode() + b"\n"
ZIPPED = gzip.compress(GOOD_LINE * 5000)
BROKEN = {
    "half.jsonl": (GOOD_LINE * 2 + GOOD_LINE[:20], "CP210", "line 3: not JSON.*may be cut"),
    "word.jsonl": (GOOD_LINE + b"nonsense\n" + GOOD_LINE, "CP210", "line 2: not JSON"),
    "list.jsonl": (GOOD_LINE + b"[1]\n", "CP210", "line 2: holds a list"),
    "latin.jsonl": (GOOD_LINE + b'{"chosen": "\xe9"}\n', "CP210", "line 2: not UTF-8 at byte 12"),
    "half.json": (b'[{"a": 1},\n {"a": 2', "CP210", "line 2: not JSON.*may be cut"),
    "within.json": (b'[{"a": 1},\n {"a": "tex', "CP210", "line 2: not JSON: Unterm.*may be cut"),
    "open.json": (b'[{"a": 1}\n', "CP210", "line 2: not JSON.*may be cut"),
    "comma.json": (b'[{"a": 1},\n]', "CP210", "not JSON"),
    "lacks.json": (b'[{"a": 1}\n {"a": 2}]', "CP210", "line 2: not JSON: Expecting ','"),
    "more.json": (b'[{"a": 1}]\n]', "CP210", "line 2: not JSON: Extra data"),
    "latin.json": (b'[{"a": 1},\n{"a": "\xe9"}]', "CP210", "line 2: not UTF-8 at byte 7"),
    "long.json": (b'[{"a": 1},\n{"a": "' + b"x" * 2**26, "CP216", "line 2: longer than 32 MiB"),
    "mixed.json": (b'[{"a": 1}, 2]', "CP210", "entry 1 is a int"),
    "object.json": (b'{\n"data": [{"a": 1}]\n}', "CP210", "line 1: not JSON"),
    "short.csv": (b"chosen,rejected\na,b\nc\n", "CP210", "line 3: has 1 cells.*has 2"),
    "twice.csv": (b"chosen,chosen\na,b\n", "CP210", "line 1: names a column twice"),
    "quote.csv": (b'chosen,rejected\na,"b\n', "CP210", "not CSV"),
    "cut.jsonl.gz": (ZIPPED[: len(ZIPPED) // 2], "CP210", "line \\d+: the compressed data ends"),
    "flipped.jsonl.gz": (
        ZIPPED[:40] + bytes([ZIPPED[40] ^ 255]) + ZIPPED[41:],
        "CP210",
        "damaged or unreadable",
    ),
    "plain.jsonl.gz": (GOOD_LINE, "CP210", "line 1: damaged or unreadable: Not a gzipped file"),
    "plain.json.bz2": (GOOD_LINE, "CP210", "line 1: damaged or unreadable"),
    "plain.csv.xz": (GOOD_LINE, "CP210", "line 1: damaged or unreadable"),
    "noise.parquet": (b"PAR1 but not really", "CP210", "not Parquet, or damaged"),
    "empty.jsonl": (b"", "CP209", "no rows"),
    "blank.jsonl": (b"\n\n", "CP209", "no rows"),
    "empty.json": (b"[]", "CP209", "no rows"),
    "header.csv": (b"chosen,rejected\n", "CP209", "no rows"),
    "empty.csv": (b"", "CP209", "no rows"),
    "rows.txt": (b"a", "CP210", "no known kind"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    content, code, said = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load(tmp_path / name)
    assert caught.value.code == code
    assert str(tmp_path / name) in caught.value.message


def test_a_stream_breaks_where_the_file_does(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_bytes(GOOD_LINE * 2 + GOOD_LINE[:20])
    rows = iter(load(tmp_path / "half.jsonl", streaming=True))
    with pytest.raises(DataError, match=r"CP210.*line 3"):
        list(rows)


def test_what_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CP211 there is no file .*missing.jsonl"):
        load(str(tmp_path / "missing.jsonl"))
    for nowhere in ("./missing", "/missing/folder", "a/b/c"):
        with pytest.raises(DataError, match=r"CP211 there is no file or folder"):
            load(nowhere)
    with pytest.raises(DataError, match=r"CP211 .*holds neither"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"CP211 an empty list"):
        load([])


def test_a_split_that_does_not_exist_is_named_beside_those_that_do(tmp_path: Path) -> None:
    data = Dataset.from_list(ROWS)
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "two")
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    with pytest.raises(DataError, match=r"CP211 .*no split 'dev'; it has train, test"):
        load(tmp_path / "two", split="dev")
    with pytest.raises(DataError, match=r"CP211 .*no split 'test'"):
        load(tmp_path / "rows.jsonl", split="test")


@pytest.mark.parametrize("kind", ["a file", "several files", "a folder"])
def test_what_has_no_subsets_is_not_read_as_if_it_had(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    source = {"a file": str(file), "several files": [str(file)], "a folder": str(tmp_path)}[kind]
    assert len(load(source)) == 1
    with pytest.raises(DataError, match=r"CP211 .* has no subset 'de': files and folders have"):
        load(source, config="de")


def test_pick_split_takes_train_or_the_only_one() -> None:
    one, two = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:1])
    assert pick_split(one) is one
    assert pick_split(DatasetDict(train=one, test=two)) is one
    assert pick_split(DatasetDict(test=two)) is two
    with pytest.raises(DataError, match=r"CP211 there is no split 'train'; there are a, b"):
        pick_split(DatasetDict(a=one, b=two))


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([{"x": {"y": object()}}], "not JSON serializable"),
        ("b\ud800", "surrogates not allowed"),
        ({"x": {"y": "\ud800"}}, "surrogates not allowed"),
        ({"x": {"y": 2**70}}, "too big"),
        (2**70, "too big"),
    ],
)
def test_a_cell_that_is_no_data_is_refused_with_its_row(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"CP202 the list, row 1, field chosen: .*{said}"):
        dataset_from_rows([{"chosen": None}, {"chosen": cell}], name="the list")


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(DataError, match=r"CP202 the list, row 1 is of type str"):
        dataset_from_rows([{"a": 1}, "b"], name="the list")
