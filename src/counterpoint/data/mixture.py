"""Several data sets become one, each with its weight, its columns and its own row numbers.

1. Each set is opened, cut and renamed by itself, as ``listed`` says. Then all stand behind one
   another in one ``Dataset``, which every command reads as it reads any other.
2. Where types of a column differ, its cells are joined as JSON, which is read back as it was.
3. How often a row comes in an epoch is no matter of the rows: ``order`` says it of the pairs.

Not here: the order itself (``mixed_order``), which rows are held out (``held_out``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, IterableDataset

from counterpoint.data import formats
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.listed import ListedSet, names_of_sets
from counterpoint.data.mixed_order import MixedOrder, SetShare
from counterpoint.data.picture_files import folder_of, in_folder
from counterpoint.data.several import one_rejected_a_row
from counterpoint.data.sources import as_json_cells, dataset_from_rows, load, pick_split
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError

Numbers = npt.NDArray[np.int64]

AT_ONCE = 10_000
"""Rows of a column that are looked at together."""

_ROW = re.compile(r"\brow (\d+)\b")


@dataclass(frozen=True, slots=True)
class Part:
    """One set of a mixture.

    Args:
        name: as messages call it.
        weight: how often its rows come in an epoch.
        rows: how many stand in the mixture.
        data: the set as it was opened, with all of its columns.
        numbers: of its own rows, those that stand in the mixture; None: all, from 0.
    """

    name: str
    weight: Fraction
    rows: int
    data: Dataset
    numbers: Numbers | None = None


class Mixture:
    """Rows of several sets behind one another, and where each set's begin.

    Args:
        rows: of all sets.
        parts: the sets, in the order of their rows; at least one.
    """

    def __init__(self, rows: Dataset, parts: Sequence[Part]) -> None:
        self.rows, self.parts = rows, tuple(parts)
        self._ends = np.cumsum([one.rows for one in parts])

    def __len__(self) -> int:
        """Rows of all sets, each once."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        """The raw rows, each once."""
        return iter(self.rows)

    def kept(self, numbers: Numbers) -> Mixture:
        """The same with some rows alone.

        Args:
            numbers: of rows, rising.
        """
        bounds = np.searchsorted(numbers, [0, *self._ends])
        parts, first = [], 0
        for part, begin, end in zip(self.parts, bounds, bounds[1:], strict=False):
            own = numbers[begin:end] - first
            own = own if part.numbers is None else part.numbers[own]
            parts.append(replace(part, rows=int(end - begin), numbers=own))
            first += part.rows
        return Mixture(self.rows.select(numbers), parts)

    def set_of(self, row: int) -> tuple[str, int]:
        """The set that a row is of, and its number there.

        Args:
            row: its number in the mixture.
        """
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self.parts[number]
        own = row - (int(self._ends[number - 1]) if number else 0)
        return part.name, own if part.numbers is None else int(part.numbers[own])

    def sets_of(self, rows: Numbers) -> Numbers:
        """Of each row the number of its set."""
        return np.searchsorted(self._ends, rows, side="right").astype(np.int64)

    def located(self, error: DataError) -> DataError:
        """An error about a row, which says where that row is from."""
        found = _ROW.search(error.message)
        if found is None or int(found[1]) >= len(self):
            return error
        name, own = self.set_of(int(found[1]))
        text = f"{error.message[: found.end()]} (row {own} of {name})"
        return DataError(error.code, text + error.message[found.end() :])

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Within it an error about a row says where that row is from."""
        try:
            yield
        except DataError as error:
            raise self.located(error) from error

    def mixed(self, pairs: Dataset, counts: PrepareCounts, name: str) -> MixedOrder | None:
        """The order of prepared pairs, its shares noted in their account; see ``order``."""
        mix = self.order(rows_of_pairs(pairs), name)
        counts.shares = () if mix is None else mix.shares
        return mix

    def order(self, kept: Numbers, name: str) -> MixedOrder | None:
        """How an epoch is made of the sets; None where it is one set as it is.

        Args:
            kept: numbers of the rows that are pairs.
            name: of the whole, for messages.

        Raises:
            DataError: CP209 for a set of which no row is a pair.
        """
        pairs = np.bincount(self.sets_of(kept), minlength=len(self.parts))
        for part, count in zip(self.parts, pairs, strict=True):
            if not count:
                raise DataError(
                    "CP209",
                    f"{name}: none of the {part.rows:,} rows of {part.name} is a pair, and its "
                    "weight asks for some in each epoch. Mend it, or leave it out.",
                )
        if len(self.parts) == 1 and self.parts[0].weight == 1:
            return None
        return MixedOrder(
            [
                SetShare(part.name, part.rows, int(count), part.weight)
                for part, count in zip(self.parts, pairs, strict=True)
            ]
        )


def joined_rows(data: Any) -> Any:
    """The rows of a mixture as one data set; anything else as it is."""
    return data.rows if isinstance(data, Mixture) else data


def rows_of_pairs(pairs: Dataset) -> Numbers:
    """Of each prepared pair the number of its row, read a part at a time."""
    tables = pairs.select_columns(["row"]).with_format("arrow").iter(AT_ONCE)
    numbers = [table.column("row").to_numpy() for table in tables]
    return np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)


def as_mixture(rows: Dataset, name: str) -> Mixture:
    """One data set as a mixture of itself, so that rows that are left of it keep their numbers.

    Args:
        rows: raw rows.
        name: of the set.
    """
    apart = one_rejected_a_row(lists_of_csv(undecoded(rows), name))
    return Mixture(apart, [Part(name, Fraction(1), len(apart), rows)])


def first_rows(rows: Any, most: int | None) -> Any:
    """The first rows of a data set or stream.

    Args:
        rows: of any kind.
        most: how many, at least 1; None: all.
    """
    if most is None:
        return rows
    if isinstance(rows, IterableDataset):
        return rows.take(most)
    return rows if len(rows) <= most else rows.select(range(most))


def open_sets(sets: Sequence[ListedSet], *, most: int | None = None) -> Mixture:
    """Open several sets and put them behind one another.

    Args:
        sets: at least one.
        most: most rows of each, its first ones, where it does not say; None: all.

    Raises:
        DataError: CP2xx for what cannot be read; CP201 for a set without preferences; CP237 for
            columns that a set does not have.
    """
    names = names_of_sets(sets)
    opened = [_opened(one, name, most) for one, name in zip(sets, names, strict=True)]
    parts = [
        Part(name, one.weight, len(rows), rows)
        for one, name, rows in zip(sets, names, opened, strict=True)
    ]
    read = [rows.select_columns(formats.columns_read(rows)) for rows in opened]
    return Mixture(_placed_in(_joined(read, names), {*map(folder_of, opened)}), parts)


def _opened(one: ListedSet, name: str, most: int | None) -> Dataset:
    found = pick_split(load(one.source, split=one.split, config=one.subset))
    assert isinstance(found, Dataset)  # nothing was asked to stream
    whole = undecoded(first_rows(found, one.rows or most))
    rows = one_rejected_a_row(in_own_columns(lists_of_csv(whole, name), one.columns, name))
    formats.check_columns(rows.column_names, name=name)
    return _placed_in(rows, {folder_of(found)})


def _placed_in(rows: Dataset, folders: set[str | None]) -> Dataset:
    """Rows whose pictures lie in one folder, or in none that could be named."""
    only = folders.pop() if len(folders) == 1 else None
    placed: Dataset = in_folder(rows, Path(only) if only else None)
    return placed


# Columns


def in_own_columns(rows: Dataset, columns: Mapping[str, str], name: str) -> Dataset:
    """A data set whose columns have the names that ``formats`` knows.

    Args:
        rows: raw rows.
        columns: name here -> the set's own; a field of a column after a dot, at any depth.
        name: of the set, for messages.

    Raises:
        DataError: CP237 for a name that has no meaning here, and for one that the set lacks.
    """
    if not columns:
        return rows
    for ours in columns:
        if ours not in formats.READ:
            raise DataError(
                "CP237",
                f"{name}: columns: {ours!r} has no meaning here; a set's own column is the second "
                f"of the two. Names with a meaning: {', '.join(sorted(formats.READ))}.",
            )
    found = {ours: _column(rows, theirs, name) for ours, theirs in columns.items()}
    used = {_split_path(rows, theirs, name)[0] for theirs in columns.values()}
    left = [one for one in rows.column_names if one not in {*used, *columns}]
    taken: list[Dataset] = [
        column if column.column_names == [ours] else column.rename_columns({"value": ours})
        for ours, column in found.items()
    ]
    rest = [rows.select_columns(left)] if left else []
    made: Dataset = datasets.concatenate_datasets([*rest, *taken], axis=1)
    return made


def _split_path(rows: Dataset, theirs: str, name: str) -> tuple[str, list[str]]:
    """The column that a path begins with, and the fields that it goes on with."""
    if theirs in rows.column_names:
        return theirs, []
    first, *rest = theirs.split(".")
    if first in rows.column_names and rest:
        return first, rest
    raise DataError(
        "CP237",
        f"{name} has no column {theirs}; it has {', '.join(rows.column_names)}.",
    )


def _column(rows: Dataset, theirs: str, name: str) -> Dataset:
    """A column, or a field of one, as a data set of one column called value."""
    first, fields = _split_path(rows, theirs, name)
    whole = rows.select_columns([first])
    if not fields:
        return whole.rename_columns({first: "value"})
    cells: list[dict[str, Any]] = []
    seen = False
    for batch in whole.with_format(None).iter(batch_size=AT_ONCE):
        for cell in batch[first]:
            inner, there = _field(cell, fields)
            seen = seen or there
            cells.append({"value": inner})
    if not seen:
        raise DataError("CP237", f"{name}: no row has {theirs}: column {first} has no such field.")
    return dataset_from_rows(cells, name=name)


def _field(cell: Any, fields: Sequence[str]) -> tuple[Any, bool]:
    """What stands in a field of a cell, and whether there is such a field."""
    for one in fields:
        if not isinstance(cell, Mapping) or one not in cell:
            return None, False
        cell = cell[one]
    return cell, True


# One data set of several


def _joined(parts: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """Rows of all sets, a column that a set lacks null in its rows."""
    kinds: dict[str, list[Any]] = {}
    for part in parts:
        for column, kind in part.features.items():
            kinds.setdefault(column, []).append(kind)
    unlike = [column for column, found in kinds.items() if any(k != found[0] for k in found)]
    alike = [_as_json(part, unlike, name) for part, name in zip(parts, names, strict=True)]
    made: Dataset = datasets.concatenate_datasets(alike)
    return made


def _as_json(rows: Dataset, columns: Sequence[str], name: str) -> Dataset:
    """The same rows with some columns as JSON, whose cells are read as they were."""
    mine = [column for column in columns if column in rows.column_names]
    if not mine:
        return rows
    chunks: dict[str, list[pa.Array]] = {column: [] for column in mine}
    first = 0
    for batch in rows.select_columns(mine).with_format(None).iter(batch_size=AT_ONCE):
        for column in mine:
            chunks[column].append(as_json_cells(batch[column], column, name, first_row=first))
        first += len(batch[mine[0]])
    table = pa.table({column: pa.chunked_array(found) for column, found in chunks.items()})
    rest = [one for one in rows.column_names if one not in mine]
    made = Dataset(table)
    if not rest:
        return made
    both: Dataset = datasets.concatenate_datasets([rows.select_columns(rest), made], axis=1)
    return both
