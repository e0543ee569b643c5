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
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from counterpoint._version import __version__
from counterpoint.data.encoder import Encoder
from counterpoint.data.options import Limits

VERSION = 9
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

ROWS_AT_ONCE = 1000


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


def digest(dataset: Dataset, columns: Iterable[str], encoder: Encoder[Any], limits: Limits) -> str:
    """A name for what preparing these rows with this encoder gives, as 40 hexadecimal digits.

    Args:
        dataset: the raw rows.
        columns: those of its columns that are read.
        encoder: its identity counts.
        limits: as given to ``encode_rows``.
    """
    total = hashlib.blake2b(digest_size=20)
    limit_values = [limits.max_length, limits.max_completion_length, limits.truncation]
    total.update(json.dumps([VERSION, _versions(), *limit_values]).encode())
    total.update(encoder.identity())
    _add_rows(total, dataset.select_columns(sorted(columns)))
    return total.hexdigest()


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
            for part in table.to_batches(max_chunksize=ROWS_AT_ONCE):
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
