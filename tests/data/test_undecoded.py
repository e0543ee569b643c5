"""No reader opens what a column of pictures, sounds or documents names."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, DatasetInfo, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.sources import load
from counterpoint.data.undecoded import undecoded
from counterpoint.doctor.survey import survey
from counterpoint.errors import DataError
from counterpoint.smoke.rows import own_pairs

CLOSABLE = [
    getattr(datasets, name)
    for name in (
        *("Audio", "Image", "Video", "Pdf", "Nifti"),
        *("Mesh", "BioSequence", "BioStructure"),  # of newer releases
    )
    if hasattr(datasets, name)
]


def asset(kind: Any, path: str) -> dict[str, Any]:
    named = {field.name: None for field in kind().pa_type}
    return {**named, "path": path}


def table_of(kind: Any, path: str) -> Dataset:
    """Rows with a column of the kind, alone, in a list and in a struct; as any author may write."""
    seen = asset(kind, path)
    rows = {
        "prompt": ["Hi", "Ho"],
        "chosen": [" yes", " yes"],
        "rejected": [" no", " no"],
        "image": [seen, None],
        "images": [[seen], []],
        "extra": [{"deep": [seen]}, None],
    }
    text = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
    features = Features(
        {**text, "image": kind(), "images": List(kind()), "extra": {"deep": List(kind())}}
    )
    schema = features.arrow_schema
    columns = [pa.array(rows[field.name], field.type) for field in schema]
    return Dataset(
        pa.Table.from_arrays(columns, schema=schema), info=DatasetInfo(features=features)
    )


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files opened outside the data's folder, and everything that was decoded."""
    found: list[str] = []
    real = builtins.open

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith("outside.bin"):
            found.append(str(file))
        return real(file, *args, **kwargs)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", watched)
    for kind in CLOSABLE:
        whole = kind.decode_example

        def decode(self: Any, value: Any, *args: Any, whole: Any = whole, **kwargs: Any) -> Any:
            found.append(f"{type(self).__name__} {value}")
            return whole(self, value, *args, **kwargs)

        monkeypatch.setattr(kind, "decode_example", decode)
    return found


def as_files(rows: Dataset, folder: Path) -> Path:
    rows.to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved(rows: Dataset, folder: Path) -> Path:
    rows.save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_dict(rows: Dataset, folder: Path) -> Path:
    DatasetDict(train=rows).save_to_disk(folder / "splits")
    return folder / "splits"


SOURCES: dict[str, Callable[[Dataset, Path], Any]] = {
    "a Dataset": lambda rows, folder: rows,
    "a Dataset with torch's format": lambda rows, folder: rows.with_format("torch"),
    "a stream": lambda rows, folder: rows.to_iterable_dataset(),
    "a file": lambda rows, folder: load(as_files(rows, folder)),
    "a file, streamed": lambda rows, folder: load(as_files(rows, folder), streaming=True),
    "two files": lambda rows, folder: load([as_files(rows, folder)] * 2),
    "a folder": lambda rows, folder: load(as_files(rows, folder).parent),
    "a saved set": lambda rows, folder: load(as_saved(rows, folder)),
    "a saved set, streamed": lambda rows, folder: load(as_saved(rows, folder), streaming=True),
    "saved splits": lambda rows, folder: load(as_saved_dict(rows, folder), split="train"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_no_reader_opens_what_a_picture_names(
    tmp_path: Path,
    opened: list[str],
    chatml_tokenizer: PreTrainedTokenizerFast,
    source: str,
) -> None:
    secret = tmp_path / "outside.bin"
    secret.write_bytes(b"not yours")
    rows = SOURCES[source](table_of(datasets.Image, str(secret)), tmp_path)
    opened.clear()  # what writing the files took
    options = PrepareOptions(invalid_rows="drop")
    prepared = prepare(rows, chatml_tokenizer, options)
    kept = [pair.row for pair in iter_pairs(prepared)]
    assert kept == [row for row in range(prepared.counts.rows) if row % 2]
    assert set(prepared.counts.dropped) == {"CP219"}
    found = survey(rows, chatml_tokenizer, options, name="train")
    assert found.problems["CP219"].count == len(kept)
    assert not found.bugs.count
    assert not found.failures
    with pytest.raises(DataError, match="CP219"):
        own_pairs(rows, chatml_tokenizer, CPOConfig(output_dir=str(tmp_path)), 2)
    assert opened == []


@pytest.mark.parametrize("kind", CLOSABLE, ids=lambda kind: kind.__name__)
def test_every_kind_of_file_in_a_cell_stays_closed(
    tmp_path: Path, opened: list[str], kind: Any
) -> None:
    rows = table_of(kind, str(tmp_path / "outside.bin"))
    for closed in (undecoded(rows), undecoded(rows.to_iterable_dataset())):
        first = next(iter(closed))
        path = str(tmp_path / "outside.bin")
        found = first["image"], first["images"][0], first["extra"]["deep"][0]
        assert [one["path"] for one in found] == [path] * 3
    assert undecoded({"a": rows})["a"][0]["image"]["path"] == path
    assert rows.features["image"].decode, "the user's own data set is left as it was"
    assert opened == []


def test_scored_candidates_beside_a_picture_are_read_without_it(opened: list[str]) -> None:
    rows = table_of(datasets.Image, "/nowhere/outside.bin").select([0])
    rows = rows.add_column(
        "candidates", [[{"text": " 4", "score": 1.0}, {"text": " 5", "score": 0.0}]]
    )
    for given in (rows, rows.to_iterable_dataset()):
        assert [pair["chosen"] for pair in pairs_from_scored(given).pairs] == [" 4"]
    assert opened == []


def test_json_stays_data_and_what_holds_no_file_is_left_alone() -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['[1, {"a": 2}]']))
    rows = Dataset(pa.table({"tools": column}))
    assert undecoded(rows) is rows
    assert undecoded(rows)[0]["tools"] == [1, {"a": 2}]
    unknown = IterableDataset.from_generator(lambda: iter([{"prompt": "a"}]))
    assert undecoded(unknown) is unknown
    assert undecoded([{"a": 1}]) == [{"a": 1}]
