"""A data set as the rows that the doctor looks at: one pair each, as the trainer reads them.

Not here: what is looked at (``survey``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from counterpoint.data import formats
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.pictures import looks_like_picture
from counterpoint.data.several import one_rejected_a_row
from counterpoint.data.sources import dataset_from_rows
from counterpoint.errors import DataError

AT_ONCE = 1000
"""Rows that are Python objects at one time, and between two calls of ``progress``."""


def raw_table(dataset: Dataset | list[Any], name: str) -> Dataset:
    """A set, or rows, as a ``Dataset`` whose rows are one pair each.

    Args:
        dataset: raw rows.
        name: for messages.

    Raises:
        DataError: CP209 without a row; CP201 where no column holds preferences; CP202, CP223 and
            CP224 for what no table can hold.
    """
    given = dataset if isinstance(dataset, Dataset) else dataset_from_rows(dataset, name=name)
    table: Dataset = one_rejected_a_row(lists_of_csv(given, name))
    if not len(table):
        raise DataError("CP209", f"{name} has no rows.")
    formats.check_columns(table.column_names, name=name)
    return table


def read_alone(row: Any) -> Any:
    """A row without what columns of no meaning hold, which a table may have no type for.

    Args:
        row: cells by column; anything else is returned as it is.
    """
    if not isinstance(row, Mapping):
        return row
    return {
        name: cell if name in formats.READ or looks_like_picture(cell) else None
        for name, cell in row.items()
    }


def raw_rows(table: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a set, of the columns that are read.

    Args:
        table: from ``raw_table``.
    """
    read = formats.columns_read(table)
    for batch in table.with_format(None).select_columns(read).iter(batch_size=AT_ONCE):
        names = list(batch)
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(names, cells, strict=True))
