"""A JSON array is read entry by entry: the same rows, and little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.files import BLOCK, read_rows
from counterpoint.data.json_array import BrokenArray, entries
from counterpoint.data.sources import load
from counterpoint.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


def in_blocks(text: str, size: int) -> list[Any]:
    blocks = (text[n : n + size] for n in range(0, len(text), size))
    return [*entries(blocks, 10_000)]


@given(
    st.lists(values), st.integers(1, 40), st.sampled_from([None, 2]), st.booleans(), st.integers(0)
)
def test_an_array_is_the_same_however_its_text_is_cut(
    rows: list[Any], size: int, indent: int | None, ascii_only: bool, end: int
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    for one in (text, f"\n {text}\n", text[: end % len(text)], text.replace(":", "", 1)):
        try:
            wanted = json.loads(one)
        except ValueError:
            with pytest.raises(BrokenArray):
                in_blocks(one, size)
        else:
            # nan is not itself
            assert json.dumps(in_blocks(one, size)) == json.dumps(wanted)


def test_the_memory_of_an_array_does_not_grow_with_it(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "é" * 500, "chosen": "b" * 500, "rejected": "c" * 500})
    (tmp_path / "rows.json").write_text(f"[{', '.join([row] * 10_000)}]")  # on one line
    assert (tmp_path / "rows.json").stat().st_size > 20 * BLOCK
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(tmp_path / "rows.json")) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 8 * BLOCK
    finally:
        tracemalloc.stop()


def test_rows_before_the_place_where_an_array_breaks_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": 2}, {"a": "')
    rows = iter(load(tmp_path / "rows.json", streaming=True))
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"line 1: not JSON.*may be cut"):
        next(rows)
