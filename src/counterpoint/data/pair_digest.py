"""A name for the pairs that a run trains on: equal pairs in equal order have equal digests.

Covered are the ids of prompts and completions, the weights and the margins. How they came to be
is not: a cache, a stream, other machines, other numbers of processes, and rows that were dropped
in between change nothing. Each column is hashed as it comes, so that rows may come one by one or
in blocks.

Not here: the digest of raw rows, tokenizer and limits that names a file of the cache (``cache``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
NUMBERS = ("weight", "margin")
ROWS_AT_ONCE = 10_000


def pairs_digest(pairs: Dataset) -> str:
    """The digest of a prepared data set.

    Args:
        pairs: with the columns of ``prepare.PAIR_COLUMNS``; any selection of rows.
    """
    found, plain = PairDigest(), pairs.with_format("arrow")
    for start in range(0, len(plain), ROWS_AT_ONCE):
        found.add_table(plain[start : start + ROWS_AT_ONCE])
    return found.hexdigest()


class PairDigest:
    """Grows with each row."""

    def __init__(self) -> None:
        names = [*IDS, *(f"{name} lengths" for name in IDS), *NUMBERS]
        self._columns = {name: hashlib.blake2b(digest_size=20) for name in names}

    def __eq__(self, other: object) -> bool:
        """Whether both are of equal pairs in equal order."""
        return isinstance(other, PairDigest) and self.hexdigest() == other.hexdigest()

    __hash__ = None  # type: ignore[assignment] # it grows

    def add_row(self, record: Mapping[str, Any]) -> None:
        """Take one prepared row."""
        for name in IDS:
            self._add(name, record[name], "<i4")
            self._add(f"{name} lengths", [len(record[name])], "<i4")
        for name in NUMBERS:
            self._add(name, [record[name]], "<f8")

    def add_table(self, table: pa.Table) -> None:
        """Take a block of prepared rows, all of them."""
        for batch in table.to_batches():
            for name in IDS:
                column = batch.column(name)
                self._add(name, column.flatten(), "<i4")
                self._add(f"{name} lengths", pc.list_value_length(column), "<i4")
            for name in NUMBERS:
                self._add(name, batch.column(name), "<f8")

    def hexdigest(self) -> str:
        """The digest of what was taken so far, as 40 hexadecimal digits."""
        total = hashlib.blake2b(digest_size=20)
        for column in self._columns.values():
            total.update(column.digest())
        return total.hexdigest()

    def _add(self, name: str, values: Any, dtype: str) -> None:
        # a byte order that does not depend on the machine
        self._columns[name].update(np.ascontiguousarray(values, dtype=dtype).data)
