"""Sets that ``datasets`` read from CSV: columns of lists, which are text there, become lists.

A user who opens a CSV file with ``load_dataset`` gets the rows that the same file gives here.

1. A stream is read row by row, so that no column of it can be judged; its text stays text, and is
   counted (CW220).
2. So does a set that another library read: nothing says that it was a CSV file once.

Not here: how a column is judged (``csv_columns``), files (``files``).
"""

from __future__ import annotations

from typing import Any

import datasets
from datasets import Dataset, Value

from counterpoint.data.csv_columns import MEANT, CsvColumns, read_list
from counterpoint.data.formats import NUMBERS
from counterpoint.data.sources import dataset_from_rows

AT_ONCE = 1000

_TEXTS = (Value("string"), Value("large_string"))


def lists_of_csv(data: Any, name: str = "the data set") -> Any:
    """The same set, its columns of lists read.

    Args:
        data: anything that the trainer takes; what is no ``Dataset`` from CSV is returned as it is.
        name: for messages.

    Raises:
        DataError: CP223 or CP224 for a cell unlike the rest of its column.
    """
    if not isinstance(data, Dataset) or data.info.builder_name != "csv":
        return data
    names = [n for n, kind in data.features.items() if kind in _TEXTS and n in MEANT - {*NUMBERS}]
    if not names or data.format["type"] == "custom":
        return data
    columns, texts = CsvColumns(names), data.with_format(None).select_columns(names)
    row = 0
    for batch in texts.iter(batch_size=AT_ONCE):
        for cells in zip(*(batch[one] for one in names), strict=True):
            columns.look([cell or "" for cell in cells], row)
            row += 1
    readers = columns.readers(name)
    lists = [one for one in names if readers[one] is read_list]
    if not lists:
        return data
    rows = [
        {one: read_list(cell or "") for one, cell in cells.items()}
        for cells in texts.select_columns(lists)
    ]
    made, rest = dataset_from_rows(rows, name=name), data.remove_columns(lists)
    return datasets.concatenate_datasets([rest, made], axis=1) if rest.column_names else made
