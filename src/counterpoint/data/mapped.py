"""Large files become files of the cache that are mapped: no rank holds their rows in memory.

1. A file is read some thousand rows at a time. What they become goes to the disk at once.
2. Rows of other types than those before begin another file, so that nothing has to be read again
   to find the types of a column. Most files become one.
3. They are known by the path, size, time and inode of what they were made from. A second start maps
   them and reads no row; every rank of a machine maps the same ones.

Not here: how rows are read (``files``), what they mean (``formats``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from counterpoint._version import __version__
from counterpoint.data import cache
from counterpoint.data.files import OPENERS
from counterpoint.log import logger

LARGE = 64 << 20
"""Bytes from which a file is mapped; smaller ones are little beside any model."""

PACKED = 8
"""How many times as much a packed file may hold, about."""


def is_mapped(path: Path) -> bool:
    """Whether a file is large enough, and there is a cache.

    Args:
        path: of the file.
    """
    packed = path.suffix in OPENERS or path.suffix == ".parquet"
    size = path.stat().st_size * (PACKED if packed else 1)
    return size >= LARGE and cache.folder() is not None


def mapped(path: Path, read: Callable[[], Iterable[Dataset]]) -> list[Dataset]:
    """The rows of a file, mapped.

    Args:
        path: of the file.
        read: gives its rows in their order, some at a time; called where the cache lacks them.

    Returns:
        Data sets of one type each, one after the other; in memory where the disk refuses.
    """
    home = cache.folder()
    assert home is not None
    name = _name_of(path)
    found = _opened(home, name)
    if found is not None:
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name[:8]}-", dir=home) as scratch:
            rows = _written(read(), Path(scratch))
            for number in range(len(rows)):
                os.replace(Path(scratch) / f"{number}.arrow", home / f"{name}-{number}.arrow")
        cache.remembered(f"{name}-rows", lambda: rows)
    except OSError as error:
        logger().warning("The rows of %s could not be kept in %s: %s", path, home, error)
        return [*read()]
    return _opened(home, name) or [*read()]


def _name_of(path: Path) -> str:
    stat = path.stat()
    facts = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    facts += [cache.VERSION, __version__, pa.__version__, datasets.__version__]
    total = hashlib.blake2b(json.dumps(facts).encode(), digest_size=20)
    return f"rows-{total.hexdigest()}"


def _opened(home: Path, name: str) -> list[Dataset] | None:
    """What is there of a file's rows; None where not all of it is."""
    try:
        rows = json.loads((home / f"{name}-rows.json").read_text(encoding="utf-8"))
        found = [Dataset.from_file(str(home / f"{name}-{n}.arrow")) for n in range(len(rows))]
    except (OSError, ValueError, pa.ArrowException):
        return None
    return found if [len(one) for one in found] == rows else None


def _written(parts: Iterable[Dataset], folder: Path) -> list[int]:
    """Write rows as they come; how many each file has."""
    rows: list[int] = []
    schema: pa.Schema | None = None
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for part in parts:
            table = part.data.table
            if schema is None or not table.schema.equals(schema):
                stack.close()  # the file before is whole
                schema = table.schema
                file = stack.enter_context((folder / f"{len(rows)}.arrow").open("wb"))
                stack.callback(_brought_to_disk, file)
                writer = stack.enter_context(pa.ipc.new_stream(file, schema))
                rows.append(0)
            writer.write_table(table, max_chunksize=cache.ROWS_IN_A_BLOCK)
            rows[-1] += len(table)
    return rows


def _brought_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
