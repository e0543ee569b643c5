"""A digest of prepared pairs: equal for equal pairs in equal order, whatever they were read from.

It says whether two runs train on the same data, and whether a resumed run goes on with its own.

Not here: the digest of raw rows and tokenizer, which names a file of the cache (``cache``).
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
from datasets import Dataset

from counterpoint.data.prepare import PAIR_COLUMNS

ROWS_AT_ONCE = 10_000


def pairs_digest(pairs: Dataset) -> str:
    """The digest of a prepared data set.

    Args:
        pairs: with ``prepare.PAIR_COLUMNS``, of which nothing else is read.

    Returns:
        32 hexadecimal digits.
    """
    total = hashlib.blake2b(str(len(pairs)).encode(), digest_size=16)
    plain = pairs.select_columns(list(PAIR_COLUMNS)).with_format("arrow")
    for start in range(0, len(plain), ROWS_AT_ONCE):
        table = plain[start : start + ROWS_AT_ONCE]
        for column in table.columns:
            _add(total, column.combine_chunks())
    return total.hexdigest()


def _add(total: hashlib.blake2b, column: pa.Array | pa.ChunkedArray) -> None:
    """Feed a column's values and the lengths of its lists, however its memory is laid out."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        total.update(array.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        array = array.flatten()
    kind = "<f8" if pa.types.is_floating(array.type) else "<i8"
    total.update(array.to_numpy(zero_copy_only=False).astype(kind).tobytes())
