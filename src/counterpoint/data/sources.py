"""Raw data sets from files, saved folders and the hub, with errors that say where they broke.

Files are read by ``files``; saved folders and hub ids go through ``datasets``.

Not here: what the columns mean (``formats``).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Json

from counterpoint.console.phases import Phase, phase
from counterpoint.data.enclosure import check_enclosed, check_saved
from counterpoint.data.files import KINDS, OPENERS, kind_of, read_parquet, read_rows, unreadable
from counterpoint.data.mapped import is_mapped, mapped
from counterpoint.data.picture_files import in_folder
from counterpoint.data.pictures import as_bytes, is_of_pillow
from counterpoint.data.plain import plain
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError

AnyDataset: TypeAlias = Dataset | IterableDataset | DatasetDict | IterableDatasetDict

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")

LONG_NUMBER = re.compile(r"\d{19}")

ROWS_AT_ONCE = 10_000
"""Rows that are Python objects at one time while a file is read."""


def load(
    source: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    config: str | None = None,
    streaming: bool = False,
) -> AnyDataset:
    """Find and open a data set.

    Args:
        source: a file, several files of any accepted kinds (.jsonl .json .csv .tsv .parquet, the
            text ones also with .gz .bz2 .xz), a folder written by ``save_to_disk`` or holding
            such files, or a hub id, which may carry a configuration and a split:
            "owner/name", "owner/name:split", "owner/name:configuration:split".
        split: the split to open; None: all of them, or those that the source names.
        config: the configuration of a hub data set; None: its default.
        streaming: read rows when they are asked for, instead of now.

    Returns:
        One data set where a split is known or there is only one file's worth of rows, else a
        dict of them by split.

    Raises:
        DataError: CP211 not found, no such split, or a configuration of what has none; CP210
            unreadable; CP209 no rows; CP218 a folder that leads out of itself.
    """
    for name in [source] if isinstance(source, str | Path) else source:
        if isinstance(name, str) and not name.strip():
            raise DataError("CP211", "the name of a data set is blank; name a file or a hub id.")
    if not isinstance(source, str | Path):
        _refuse_config(config, " ".join(map(str, source)))
        files = [_existing(path) for path in source]
        homes = {file.resolve().parent for file in files}
        found = _only_train(_from_files(files, streaming), split)
        return in_folder(found, homes.pop() if len(homes) == 1 else None)
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        _refuse_config(config, str(path))
    if path.is_dir():
        return in_folder(_from_folder(path, split, streaming), path)
    if path.is_file() or isinstance(source, Path) or kind_of(path) is not None:
        found = _only_train(_from_files([_existing(path)], streaming), split)
        return in_folder(found, path.resolve().parent)
    return in_folder(_from_hub(source, split, config, streaming), None)


def pick_split(data: AnyDataset, split: str = "train") -> Dataset | IterableDataset:
    """One data set of a dict of splits.

    Args:
        data: a data set, returned as it is, or a dict of them.
        split: the wanted one; a dict's only split is taken whatever it is called.

    Raises:
        DataError: CP211 if a dict of several has no such split.
    """
    if not isinstance(data, Mapping):
        return data
    if split in data:
        return data[split]
    if len(data) == 1:
        return next(iter(data.values()))
    raise DataError("CP211", f"there is no split {split!r}; there are {', '.join(data)}.")


def dataset_from_rows(rows: Sequence[Any], *, name: str = "the data set") -> Dataset:
    """A data set of rows that need not have the same keys nor values of the same types.

    Args:
        rows: mappings; a key that only some have is null in the others.
        name: for messages.

    Raises:
        DataError: CP202 if an entry is not a row; CP209 if there are none.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise DataError("CP202", f"{name}, row {number} is of type {kind}; expected a dict.")
    if not rows:
        raise DataError("CP209", f"{name} has no rows; expected at least one preference pair.")
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {str(key): _column([_plain(row, key) for row in rows], key, name) for key in names}
    return Dataset(pa.table(columns))


def _plain(row: Mapping[str, Any], key: Any) -> Any:
    try:
        return _packed(plain(row.get(key)))
    except RecursionError:
        return row.get(key)  # ``_column`` refuses it by its row


def _packed(cell: Any) -> Any:
    """A picture of Pillow's, or several, as ``datasets`` has them: Arrow holds bytes."""
    if is_of_pillow(cell):
        return {"bytes": as_bytes(cell), "path": None}
    if isinstance(cell, list) and any(map(is_of_pillow, cell)):
        return [_packed(one) for one in cell]
    return cell


def _column(values: list[Any], field: Any, name: str) -> pa.Array:
    """An Arrow column; as JSON where Arrow would refuse the values or blend their keys."""
    if all(_is_plain(value) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass  # mixed types, or a value that is no data: then the next lines name its row
    return as_json_cells(values, field, name)


def as_json_cells(values: Sequence[Any], field: Any, name: str, *, first_row: int = 0) -> pa.Array:
    """Cells as a column of JSON, which ``datasets`` reads back as they were.

    Args:
        values: of any kinds.
        field: the column's name, and ``name`` that of the data set, for messages.
        name: see ``field``.
        first_row: number of the first of them.

    Raises:
        DataError: CP202 for a cell that is no data.
    """
    texts = []
    for row, value in enumerate(values, first_row):
        try:
            texts.append(_as_json(value))
        except (TypeError, ValueError, RecursionError) as error:
            text = f"{name}, row {row}, field {field}: {_shown(value)} is no data: {error}."
            raise DataError("CP202", text) from error
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _shown(value: Any) -> str:
    try:
        return ascii(value)[:60]
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"


def _as_json(value: Any) -> str | None:
    """A cell as JSON that ``datasets`` reads back as it was."""
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, default=_as_address)
    text.encode()  # half a surrogate pair, which JSON can spell, is no character
    if LONG_NUMBER.search(text):
        Json().decode_example(text)  # its reader takes no integers of more than 64 bits
    return text


def _as_address(value: Any) -> str:
    """Bytes and pictures within messages, as JSON can hold them."""
    if is_of_pillow(value):
        value = as_bytes(value)
    if not isinstance(value, bytes):
        msg = f"Object of type {type(value).__name__} is not JSON serializable"
        raise TypeError(msg)
    return f"data:;base64,{base64.b64encode(value).decode()}"


def _is_plain(value: Any) -> bool:
    """Whether a cell is a scalar, or objects of scalars: what Arrow keeps faithfully."""
    parts = value if isinstance(value, list | tuple) else [value]
    scalars = (part.values() if isinstance(part, Mapping) else [part] for part in parts)
    return not any(isinstance(x, Mapping | list | tuple) for values in scalars for x in values)


# Files


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError("CP211", f"there is no file {path} (from {Path.cwd()}).")
    if not path.is_file():
        raise DataError("CP210", f"{path} is not a file.")
    if kind_of(path) is None:
        raise DataError(
            "CP210",
            f"{path} has no known kind; expected {', '.join(KINDS)}, or one of the text kinds "
            f"followed by {', '.join(OPENERS)}.",
        )
    return path


def _refuse_config(config: str | None, name: str) -> None:
    if config is not None:
        raise DataError(
            "CP211",
            f"{name} has no subset {config!r}: files and folders have none, sets of the hub do. "
            "Name the files of that subset alone.",
        )


def _only_train(data: Dataset | IterableDataset, split: str | None) -> Dataset | IterableDataset:
    if split not in (None, "train"):
        raise DataError("CP211", f"there is no split {split!r}; a file is its own split, 'train'.")
    return data


def _from_files(paths: list[Path], streaming: bool) -> Dataset | IterableDataset:
    if not paths:
        raise DataError("CP211", "an empty list of files; expected at least one.")
    if streaming:
        return IterableDataset.from_generator(_stream, gen_kwargs={"paths": paths})
    parts: list[Dataset] = []
    for path in paths:
        with phase(f"reading {path}", unit="rows") as now:
            read = partial(_counted, path, now)
            parts += mapped(path, read) if is_mapped(path) else read()
    if not parts:
        files = ", ".join(str(path) for path in paths)
        raise DataError("CP209", f"{files}: no rows; expected at least one preference pair.")
    return _joined(parts)


def _counted(path: Path, now: Phase) -> Iterator[Dataset]:
    for part in _parts(path):
        yield part
        now.advance(len(part))


def _stream(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from read_rows(path)


def _parts(path: Path) -> Iterator[Dataset]:
    """A file as data sets of some thousand rows each."""
    if kind_of(path) == ".parquet":
        for table in read_parquet(path):
            yield undecoded(Dataset(table))
        return
    rows: list[dict[str, Any]] = []
    for row in read_rows(path):
        rows.append(row)
        if len(rows) == ROWS_AT_ONCE:
            yield dataset_from_rows(rows, name=str(path))
            rows = []
    if rows:
        yield dataset_from_rows(rows, name=str(path))


def _joined(parts: list[Dataset]) -> Dataset:
    """One data set; where the parts' types do not agree, the types are found over all rows."""
    if len(parts) == 1:
        return parts[0]
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, TypeError, pa.ArrowException):
        return dataset_from_rows([row for part in parts for row in part])


# Folders and the hub


def _from_folder(path: Path, split: str | None, streaming: bool) -> AnyDataset:
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    if not saved:
        return _from_loose_files(path, split, streaming)
    check_saved(path)
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        unreadable(path, None, f"a saved data set that does not open: {error}")
    if streaming:
        data = (
            IterableDatasetDict({name: _streamed(part) for name, part in data.items()})
            if isinstance(data, DatasetDict)
            else _streamed(data)
        )
    return _wanted(undecoded(data), split, str(path))


def _streamed(data: Dataset) -> IterableDataset:
    """A saved set as a stream with a shard for each of its files; the order is the same."""
    stream: IterableDataset = data.to_iterable_dataset(num_shards=max(1, len(data.cache_files)))
    return stream


def _from_loose_files(path: Path, split: str | None, streaming: bool) -> AnyDataset:
    """Files in a folder, by the split that their names begin with; else all are "train"."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and kind_of(file) is not None:
            check_enclosed(file, path)
            named = re.match(r"(train|validation|valid|val|dev|test|eval)(?![a-z])", file.name)
            found.setdefault(named[1] if named else "train", []).append(file)
    if not found:
        raise DataError(
            "CP211",
            f"the folder {path} holds neither a data set saved by save_to_disk nor files of kind "
            f"{', '.join(KINDS)}.",
        )
    if split is not None and split not in found:
        _no_split(split, found, str(path))
    wanted = found if split is None else {split: found[split]}
    parts = {name: _from_files(files, streaming) for name, files in wanted.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return IterableDatasetDict(parts) if streaming else DatasetDict(parts)


def _wanted(data: AnyDataset, split: str | None, name: str) -> AnyDataset:
    if split is None:
        return data
    if not isinstance(data, Mapping):
        own = str(data.split) if data.split is not None else "train"
        if split != own:
            _no_split(split, [own], name)
        return data
    if split not in data:
        _no_split(split, data, name)
    return data[split]


def _no_split(split: str, splits: Iterable[str], name: str) -> NoReturn:
    raise DataError("CP211", f"{name} has no split {split!r}; it has {', '.join(splits)}.")


def _from_hub(source: str, split: str | None, config: str | None, streaming: bool) -> AnyDataset:
    identity, *named = re.split(r":(?![^\[]*\])", source)  # not the colon of train[:100]
    if len(named) > 2:
        raise DataError(
            "CP211", f"{source!r} is not a data set; expected owner/name:configuration:split."
        )
    if not HUB_ID.fullmatch(identity):
        raise DataError("CP211", f"there is no file or folder {source} (from {Path.cwd()}).")
    split = split or (named[-1] if named else None)
    config = config or (named[0] if len(named) == 2 else None)
    try:
        return undecoded(datasets.load_dataset(identity, config, split=split, streaming=streaming))
    except Exception as error:  # the hub's client raises dozens of kinds
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        reason = f"{type(error).__name__}: {first_line[:300]}"
        raise DataError(
            "CP211",
            f"{source!r} is neither a file or folder here (from {Path.cwd()}) nor a data "
            f"set on the hub that could be opened ({reason}).",
        ) from error
