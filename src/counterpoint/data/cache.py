"""Prepared data sets are kept on disk under a digest of all that they were made from.

The digest covers the rows' content, the encoder's identity, the limits, the version of this
code and those of every package that renders and tokenizes (``PACKAGES``); never a file's time or an
object's identity. So a run that changes nothing reads what the last one wrote, and a run that
changes anything cannot.

What is kept follows from these alone: an error of the machine (memory, a missing package, an
interruption) leaves nothing behind.

A file appears under its name only when it is whole. Where no cache can be written, data is
prepared without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from counterpoint._version import __version__
from counterpoint.data.encoder import Encoder
from counterpoint.data.options import Limits

VERSION = 13
"""Raised with every change of what this room makes of a row."""

PACKAGES = (
    "transformers",
    "tokenizers",
    "jinja2",
    "markupsafe",
    "sentencepiece",
    "tiktoken",
    "mistral-common",
    "protobuf",
    "regex",
)
"""What renders and tokenizes, or may: templates through jinja2, slow tokenizers through others."""

ROWS_AT_ONCE, ROWS_IN_A_BLOCK = 1000, 10_000
"""Rows that are hashed together, and that are a block of a written file."""

logger = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where prepared data sets are kept; None where caching is switched off.

    ``COUNTERPOINT_CACHE`` names another folder than the one beside the ``datasets`` cache;
    ``datasets.disable_caching()`` and ``COUNTERPOINT_CACHE=off`` switch it off.
    """
    named = os.environ.get("COUNTERPOINT_CACHE")
    if named == "off" or not datasets.is_caching_enabled():
        return None
    return Path(named) if named else Path(datasets.config.HF_DATASETS_CACHE) / "counterpoint"


def digest(
    dataset: Dataset,
    columns: Iterable[str],
    encoder: Encoder[Any],
    limits: Limits,
    *,
    first_row: int = 0,
    beside: Sequence[Any] = (),
) -> str:
    """A name for what preparing these rows with this encoder gives, as 40 hexadecimal digits.

    Args:
        dataset: the raw rows.
        columns: those of its columns that are read.
        encoder: its identity counts.
        limits: as given to ``encode_rows``.
        first_row: number of the first of the rows.
        beside: what else the result follows from, as plain JSON: files that rows only name.
    """
    total = _digest_without_rows(encoder, limits)
    if first_row:
        total.update(json.dumps(["from row", first_row]).encode())
    if beside:
        total.update(json.dumps(["beside", *beside]).encode())
    _add_rows(total, dataset.select_columns(sorted(columns)))
    return str(total.hexdigest())


def identity_on_disk(dataset: Dataset, encoder: Encoder[Any], limits: Limits) -> str | None:
    """A name for the same that costs no look at the rows; None for a set that is not on disk.

    It stands on the fingerprint that ``datasets`` keeps of what was done to the set, and on the
    names, sizes and times of its files. It says where a digest is remembered, and is in no result.
    """
    fingerprint = getattr(dataset, "_fingerprint", None)
    files = sorted({str(entry["filename"]) for entry in dataset.cache_files})
    if not fingerprint or not files:
        return None
    total = _digest_without_rows(encoder, limits)
    try:
        for path, stat in ((path, os.stat(path)) for path in files):
            total.update(json.dumps([path, stat.st_size, stat.st_mtime_ns, stat.st_ino]).encode())
    except OSError:
        return None
    total.update(json.dumps([str(fingerprint), len(dataset)]).encode())
    return str(total.hexdigest())


def remembered(name: str, make: Callable[[], Any]) -> Any:
    """A small fact beside the prepared sets, as JSON; made where it is not there.

    Args:
        name: says all that the fact follows from.
        make: finds it; plain JSON types.
    """
    home = folder()
    if home is None:
        return make()
    path = home / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(make())
    with contextlib.suppress(OSError):  # then it is found again next time
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name[:8]}-", dir=home) as scratch:
            part = Path(scratch) / "part.json"
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
    return json.loads(text)


def cached(name: str, make: Callable[[str | None], Dataset], *, rows: int) -> Dataset:
    """Read a prepared data set, or make and keep it.

    Args:
        name: its digest.
        make: makes it, given the file to write, or None to keep it in memory.
        rows: how many rows it must have; a file of fewer is damaged.

    Returns:
        The data set, read from its file or in memory.
    """
    home = folder()
    if home is None or not _exists(home):
        return make(None)
    path = home / f"{name}.arrow"
    found = _read(path, rows)
    if found is not None:
        return found
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name[:8]}-", dir=home) as scratch:
            made = make(str(Path(scratch) / "part.arrow"))
            whole = Path(scratch) / "whole.arrow"
            _write(made, whole)
            os.replace(whole, path)
    except OSError as error:
        logger.warning("The prepared data set could not be kept in %s: %s", home, error)
        return make(None)
    return _read(path, rows) or make(None)


def _digest_without_rows(encoder: Encoder[Any], limits: Limits) -> Any:
    total = hashlib.blake2b(digest_size=20)
    total.update(json.dumps([VERSION, _versions(), *astuple(limits)]).encode())
    total.update(encoder.identity())
    return total


def _versions() -> dict[str, str]:
    """The versions of whatever a row's tokens depend on; a package that is not there has none."""
    found = {"counterpoint": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _exists(home: Path) -> bool:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("Prepared data sets cannot be kept in %s: %s", home, error)
        return False
    return True


def _read(path: Path, rows: int) -> Dataset | None:
    """The data set in a file, or None if there is none or it was damaged."""
    if not path.is_file():
        return None
    try:
        found = Dataset.from_file(str(path))
        reason: object = f"{len(found)} rows instead of {rows}"
        if len(found) == rows:
            return found
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = error
    logger.warning("A damaged file in the cache, %s, is made anew: %s", path, reason)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _write(dataset: Dataset, path: Path) -> None:
    """One file whatever number of processes made the parts, on disk before it gets its name."""
    table = dataset.data.table
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            # larger blocks than they came in: each costs every reader of the file some memory
            for start in range(0, len(table), ROWS_IN_A_BLOCK):
                block = table.slice(start, ROWS_IN_A_BLOCK).combine_chunks()
                for part in block.to_batches(max_chunksize=ROWS_IN_A_BLOCK):
                    writer.write_batch(part)
        file.flush()
        os.fsync(file.fileno())


def _add_rows(total: Any, dataset: Dataset) -> None:
    """Feed the rows to the digest, the same bytes however the data set is cut or indexed."""
    total.update(json.dumps([str(dataset.features), len(dataset)]).encode())
    plain = dataset.with_format("arrow")
    for start in range(0, len(plain), ROWS_AT_ONCE):
        table = plain[start : start + ROWS_AT_ONCE]
        merged = table.replace_schema_metadata(None).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, merged.schema) as writer:
            writer.write_table(merged)
        total.update(sink.getvalue())
