"""Rows of data files, with errors that name the line where a file breaks.

JSON lines and CSV are read here, line by line, and a JSON array entry by entry, since no library's
reader names the line.
A CSV cell stays the text that it is ("NA" and "null" are answers), but for ``weight``, ``margin``
and columns of lists (``csv_columns``); so CSV is read twice.

A file is not trusted: a line is read to ``LONGEST_LINE`` and no further, and a compressed file
may not unpack to more than ``MOST_GROWTH`` times its size.

Not here: finding files (``sources``), what columns mean (``formats``).
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset

from counterpoint.data.csv_columns import CsvColumns
from counterpoint.data.json_array import BrokenArray, LongEntry, entries
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError

OPENERS: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Suffix of a compressed file -> what opens it."""

LONGEST_LINE = 32 * 2**20
"""Bytes of one line of JSON or CSV, and characters of an entry of a JSON array; a row of so many
holds no text that a model could read."""

BLOCK = 2**20
"""Bytes of a JSON array that are read at one time."""

ROWS_OF_PARQUET = 10_000
"""Rows of a Parquet file that are unpacked at one time."""

MOST_GROWTH, ALWAYS_READ = 200, 64 * 2**20
"""Times the size of a compressed file, and bytes, that it may unpack to; the larger counts."""

_UNBOUNDED = 2**62

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def kind_of(path: Path) -> str | None:
    """Which of ``KINDS`` a file's name says it is, whether compressed or not; None: none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read one file of any of ``KINDS``.

    Args:
        path: the file.

    Yields:
        Its rows, in order.

    Raises:
        DataError: CP210 with the line where the file breaks.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        for batch in (one for table in read_parquet(path) for one in table.to_batches()):
            yield from undecoded(Dataset(pa.Table.from_batches([batch])))
    elif kind in (".csv", ".tsv"):
        yield from _csv_rows(path)
    elif kind == ".json" and _first_character(path) == "[":
        yield from _json_array(path)
    else:
        yield from _json_lines(path)


def _open(path: Path) -> io.BufferedIOBase:
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        file: io.BufferedIOBase = opener(path, "rb")
    except OSError as error:
        unreadable(path, None, str(error))
    return file


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1; whatever breaks on the way is said with its line."""
    number, left = 0, _most_bytes(path)
    with _open(path) as file:
        while True:
            line = _read(file.readline, min(LONGEST_LINE, left) + 1, path, number + 1)
            if len(line) > left:
                _too_much(path, number + 1)
            if len(line) > LONGEST_LINE:
                _too_long(path, number + 1)
            left -= len(line)
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                unreadable(path, number + 1, f"not UTF-8 at byte {error.start} of the line")
            if not line:
                return
            number += 1
            yield number, text


def _most_bytes(path: Path) -> int:
    if path.suffix.lower() not in OPENERS:
        return _UNBOUNDED
    return max(ALWAYS_READ, MOST_GROWTH * path.stat().st_size)


def _read(read: Callable[[int], bytes], most: int, path: Path, line: int) -> bytes:
    """So many bytes; what keeps them from being read is said with the line."""
    try:
        return read(most)
    except EOFError:
        unreadable(path, line, "the compressed data ends too early; the file is cut")
    except (OSError, zlib.error, lzma.LZMAError) as error:
        unreadable(path, line, f"damaged or unreadable: {error}")


def _too_much(path: Path, line: int) -> NoReturn:
    unreadable(path, line, f"the file unpacks to more than {MOST_GROWTH} times its size")


def _too_long(path: Path, line: int) -> NoReturn:
    raise DataError(
        "CP216",
        f"{path}, line {line}: longer than {LONGEST_LINE // 2**20} MiB; no model reads so long a "
        "row. Cut or remove it.",
    )


def _first_character(path: Path) -> str:
    """The first one that is no space; an array may well be a single line of any length."""
    with _open(path) as file:
        try:
            start = file.read(2**16).decode("utf-8-sig", errors="replace").lstrip()
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            return ""  # the reader of lines says what is wrong, and where
    return start[:1]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except RecursionError:
            unreadable(path, number, "nested too deeply to be a row")
        except ValueError as error:
            cut = "" if text.endswith("\n") else "; the file ends here and may be cut"
            unreadable(path, number, f"not JSON: {error}{cut}")
        if not isinstance(row, dict):
            unreadable(path, number, f"holds a {type(row).__name__}; expected an object per line")
        yield row


def _json_array(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for number, row in enumerate(entries(_blocks(path), LONGEST_LINE)):
            if not isinstance(row, dict):
                kind = type(row).__name__
                unreadable(path, None, f"entry {number} is a {kind}; expected a list of objects")
            yield row
    except LongEntry as error:
        _too_long(path, error.line)
    except BrokenArray as error:
        unreadable(path, error.line, str(error))
    except RecursionError:
        unreadable(path, None, "nested too deeply to be a list of rows")


def _blocks(path: Path) -> Iterator[str]:
    """The text of a file, some at a time; whatever breaks on the way is said with its line."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, before, left = 1, 0, _most_bytes(path)
    with _open(path) as file:
        while True:
            block = _read(file.read, min(BLOCK, left) + 1, path, number)
            if len(block) > left:
                _too_much(path, number)
            left -= len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = error.object[: error.start]
                _, _, last = good.rpartition(b"\n")
                place = len(last) + (before if len(last) == len(good) else 0)
                here = number + good.count(b"\n")
                unreadable(path, here, f"not UTF-8 at byte {place} of the line")
            if not block:
                return
            _, _, last_line = text.rpartition("\n")
            before = len(last_line.encode()) + (before if len(last_line) == len(text) else 0)
            number += text.count("\n")
            yield text


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = _csv_lines(path)
    _, header = next(lines, (0, []))
    columns = CsvColumns(header)
    for row, (line, cells) in enumerate(lines):
        columns.look(cells, row, line)
    readers = columns.readers(path)
    again = _csv_lines(path)
    next(again, None)
    for _, cells in again:
        yield {name: readers[name](cell) for name, cell in zip(header, cells, strict=True)}


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and each row, with the line on which it ends; all of as many cells."""
    csv.field_size_limit(LONGEST_LINE)
    delimiter = "," if kind_of(path) == ".csv" else "\t"
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            unreadable(path, 1, f"names a column twice: {', '.join(header)}")
        yield reader.line_num, header
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                unreadable(
                    path,
                    reader.line_num,
                    f"has {len(cells)} cells where the header has {len(header)}",
                )
            yield reader.line_num, cells
    except csv.Error as error:
        unreadable(path, reader.line_num, f"not CSV: {error}")


def read_parquet(path: Path) -> Iterator[pa.Table]:
    """A Parquet file as tables of some of its rows; none is empty.

    Raises:
        DataError: CP210 if it is none, or damaged.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_OF_PARQUET):
                if len(batch):
                    yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        unreadable(path, None, f"not Parquet, or damaged: {error}")


def unreadable(path: Path, line: int | None, text: str) -> NoReturn:
    """Refuse a file: CP210, with the line if one is to blame."""
    where = f"{path}, line {line}" if line is not None else str(path)
    raise DataError("CP210", f"{where}: {text}.")
