"""Rows whose ``rejected`` lists several completions are taken apart: a row for each of them.

1. All of them share the prompt, the chosen completion and whatever else the row says. Each weighs
   its part of the row: of three a third each, times the row's own weight.
2. From here on every row is one pair, and has the number that it has after the taking apart. In
   ``LISTED`` it remembers where it stood.
3. Of a list that cannot be used one row is left, which says why when it is read.
4. A set without such lists is returned as it is. A stream is looked at row by row as it is read.

Not here: what a completion may be (``formats``), columns of CSV files that hold lists
(``csv_sets``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value

from counterpoint.data.bars import progress_bars_off
from counterpoint.data.picture_files import folder_of, in_same_folder
from counterpoint.data.plain import plain
from counterpoint.data.said_lists import LISTED

AT_ONCE = 500
"""Rows that are taken apart together."""

VERSION = 1
"""Raised with every change of what becomes of a row."""

_BEGINS_A_LIST = r"^\s*\[\s*[^\s{]"
"""How the JSON of a list of completions begins; that of messages begins with an object."""

_MARK = {
    "row": Value("int64"),
    "place": Value("int32"),
    "of": Value("int32"),
    "problem": Value("string"),
}


def one_rejected_a_row(data: Any) -> Any:
    """The same set, each of its rows with one rejected completion.

    Args:
        data: a ``Dataset`` or a stream; anything else is returned as it is.
    """
    if isinstance(data, IterableDataset):
        return apart_while_read(data)
    if not isinstance(data, Dataset) or data.format["type"] == "custom" or not _has_lists(data):
        return data
    kind = data.features["rejected"]
    features = Features(
        {
            **data.features,
            "rejected": kind if isinstance(kind, Json) else kind.feature,
            LISTED: _MARK,
        }
    )
    take_apart = partial(
        data.with_format(None).map,
        _apart_in_batches,
        with_indices=True,
        batched=True,
        batch_size=AT_ONCE,
        features=features,
        fn_kwargs={"version": VERSION},
    )
    with progress_bars_off():
        try:
            made = take_apart()
        except OSError:  # beside the set's own files nothing can be written
            made = take_apart(keep_in_memory=True)
    return in_same_folder(made, folder_of(data))


def apart_while_read(stream: IterableDataset, number: int = 0, lanes: int = 1) -> IterableDataset:
    """A stream whose rows are taken apart when they are read.

    Args:
        stream: some shards of one.
        number: which of them, from 0: a row's number says it too.
        lanes: into how many the shards of the whole are divided.
    """
    # row by row: batches of streams that were joined would mix tables of unlike columns
    made: IterableDataset = stream.with_format(None).map(
        _apart_in_batches,
        with_indices=True,
        batched=True,
        batch_size=1,
        fn_kwargs={"number": number, "lanes": lanes},
    )
    return made


def _has_lists(data: Dataset) -> bool:
    """Whether a cell of ``rejected`` lists completions, by the column's type where that says it."""
    kind = data.features.get("rejected")
    if isinstance(kind, List | LargeList):
        return not isinstance(kind.feature, Mapping)
    if not isinstance(kind, Json):
        return False
    tables = data.select_columns(["rejected"]).with_format("arrow").iter(AT_ONCE)
    return any(_a_list_in(table.column("rejected")) for table in tables)


def _a_list_in(column: pa.ChunkedArray) -> bool:
    texts = (getattr(chunk, "storage", chunk) for chunk in column.chunks)
    return any(
        pc.any(pc.match_substring_regex(text, _BEGINS_A_LIST)).as_py()
        for text in texts
        if len(text)
    )


def _apart_in_batches(
    batch: Mapping[str, Sequence[Any]],
    places: Sequence[int],
    *,
    number: int = 0,
    lanes: int = 1,
    version: int = VERSION,  # a name that `datasets` keeps results under is made of it
) -> dict[str, list[Any]]:
    names = list(batch)
    rows = [
        one
        for place, cells in zip(places, zip(*batch.values(), strict=True), strict=True)
        for one in apart(dict(zip(names, cells, strict=True)), place * lanes + number)
    ]
    return {name: [row[name] for row in rows] for name in [*names, LISTED]}


def apart(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """A raw row as rows of one rejected completion.

    Args:
        row: the cells by column.
        number: of the row in its set.

    Returns:
        The row itself, where ``rejected`` is a text, messages or nothing; else one for each
        completion of the list, or a single one that says why the list cannot be used.
    """
    if row.get(LISTED) is not None:
        return [{**row}]  # it was taken apart before
    try:
        listed = plain(row.get("rejected"))
    except RecursionError:  # it is refused when it is read
        listed = None
    if not lists_completions(listed):
        return [{**row, LISTED: None}]
    problem = _problem(listed, plain(row.get("chosen")))
    if problem:
        return [{**row, "rejected": None, LISTED: _mark(number, 0, 0, problem)}]
    return [
        {**row, "rejected": one, LISTED: _mark(number, place, len(listed), "")}
        for place, one in enumerate(listed)
    ]


def lists_completions(cell: Any) -> bool:
    """Whether a cell is a list of completions: of texts or of lists, not of messages.

    Args:
        cell: of plain types.
    """
    return isinstance(cell, list) and not (cell and isinstance(cell[0], Mapping))


def _mark(row: int, place: int, of: int, problem: str) -> dict[str, Any]:
    return {"row": row, "place": place, "of": of, "problem": problem}


def _problem(listed: list[Any], chosen: Any) -> str:
    """What is wrong with a list, continuing "field rejected: "; "" for nothing."""
    if not listed:
        return "is an empty list; expected a completion, or a list of at least one."
    kinds = {isinstance(one, str) for one in listed}
    for place, one in enumerate(listed):
        if not isinstance(one, str | list):
            kind = type(one).__name__
            return f"lists a value of type {kind} at place {place}; expected texts or messages."
        if not (one.strip() if isinstance(one, str) else one):
            return f"lists a blank completion at place {place}. Remove it from the list."
        if one == chosen:
            return (
                f"lists the chosen completion at place {place}, so there is nothing to prefer. "
                "Remove it from the list."
            )
    if len(kinds) > 1:
        return "lists texts beside messages; write all completions of a row in one way."
    return ""
