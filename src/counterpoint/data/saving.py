"""Rows to a data file: whole or not at all, and never over a file by accident.

The same rows give the same bytes.

Not here: reading (``files``).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from counterpoint.errors import ConfigError, DataError
from counterpoint.runlog import check_writable
from counterpoint.staged import refuse_taken, staged
from counterpoint.strict import strict_json

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where no file could or should be written, before there is anything to write.

    Args:
        path: of the file to be; its folder need not exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        ConfigError: CP103 for an ending that is not among ``ENDINGS``.
        SetupError: CP501 where it cannot be written, CP506 where a file is there already.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise ConfigError("CP103", f"{path} should end with {', '.join(ENDINGS)}.")
    refuse_taken(path, overwrite=overwrite)
    check_writable(path.parent)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, *, overwrite: bool = True) -> None:
    """Write rows to a file.

    Args:
        rows: JSON-ready mappings; for Parquet all of the same columns and types.
        path: ends with one of ``ENDINGS``; folders that are missing are made.
        overwrite: whether it takes the place of a file that is there when it is finished.

    Raises:
        SetupError: CP506 where there is one and it may not be replaced.
        DataError: CP202 for values that Parquet cannot hold in one column.
        OSError: where the disk refuses; then nothing is left behind.
    """
    with staged(path, overwrite=overwrite) as file:
        if path.name.lower().endswith(".parquet"):
            _write_parquet(rows, file)
        elif path.name.lower().endswith(".gz"):
            # neither name nor time in the header: they are not of the rows
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                packed.writelines(_lines(rows))
        else:
            file.writelines(_lines(rows))


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[bytes]:
    for row in rows:
        text = strict_json(row, ensure_ascii=False, default=str)
        # half of a surrogate pair cannot be written as it is, only as JSON spells it
        yield text.encode("utf-8", errors="backslashreplace") + b"\n"


def _write_parquet(rows: Iterable[Mapping[str, Any]], file: BinaryIO) -> None:
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows])
        pyarrow.parquet.write_table(table, file)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "CP202",
            f"Parquet takes values of one type a column: {error}. Write a .jsonl file instead.",
        ) from error
