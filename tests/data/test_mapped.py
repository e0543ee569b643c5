"""Large files are mapped from the cache: the same rows, and none of them in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from counterpoint.data import files, mapped, sources
from counterpoint.data.sources import load
from counterpoint.errors import DataError

ROWS = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}", "weight": n} for n in range(9)]
ODD = [*ROWS[:4], {**ROWS[4], "weight": 0.5, "more": [{"role": "user"}]}, *ROWS[5:]]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every file is large, and three rows are many."""
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "LARGE", 0)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(files, "ROWS_OF_PARQUET", 3)


def written(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> Path:
    path = folder / f"pairs.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize(("kind", "rows"), [("jsonl", ROWS), ("parquet", ROWS), ("jsonl", ODD)])
def test_a_large_file_has_the_rows_of_a_small_one_and_is_on_disk(tmp_path, monkeypatch, kind, rows):
    path = written(tmp_path, rows, kind)
    found = load(path)
    monkeypatch.setattr(mapped, "LARGE", 1 << 40)
    small = load(path)
    assert (found.features, list(found)) == (small.features, list(small))
    assert small.cache_files == []
    if rows is ROWS:
        assert len(found.cache_files) == 1


def test_a_second_start_reads_no_row_and_a_changed_file_is_read(tmp_path, monkeypatch):
    path = written(tmp_path, ROWS)
    first = list(load(path))
    monkeypatch.setattr(sources, "_parts", lambda path: pytest.fail("read again"))
    assert list(load(path)) == first
    monkeypatch.undo()
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "LARGE", 0)
    written(tmp_path, ROWS[:5])
    assert list(load(path)) == first[:5]


def test_what_is_damaged_in_the_cache_is_made_again(tmp_path):
    path = written(tmp_path, ROWS)
    expected = list(load(path))
    [kept] = (tmp_path / "cache").glob("*.arrow")
    os.truncate(kept, 700)
    assert list(load(path)) == expected


def test_a_disk_that_refuses_leaves_the_rows_in_memory_with_a_word(tmp_path, monkeypatch, caplog):
    path = written(tmp_path, ROWS)
    (tmp_path / "cache").write_text("a file is no folder")
    found = load(path)
    assert len(found) == len(ROWS)
    assert found.cache_files == []
    assert f"The rows of {path} could not be kept in " in caplog.text


def test_a_file_that_breaks_is_named_with_its_line_and_nothing_is_kept(tmp_path):
    path = written(tmp_path, ROWS)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"CP210 .*pairs\.jsonl, line 10"):
        load(path)
    assert not list((tmp_path / "cache").iterdir())
