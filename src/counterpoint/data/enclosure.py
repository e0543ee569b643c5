"""A folder of data keeps to itself: nothing in it makes a run read a file that lies elsewhere.

A folder from a stranger may hold links, or lists of files whose names climb out of it. What the
user names is the user's own affair and is not looked at here.

Not here: reading any of it (``sources``, ``files``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterpoint.errors import DataError


def check_enclosed(path: Path, folder: Path) -> None:
    """Refuse a file of a folder that lies outside it.

    Links within the folder are followed, and so are those from a snapshot of the hub's cache to
    the files of the same repository.

    Args:
        path: as it was found or named in the folder; need not exist.
        folder: that the user named.

    Raises:
        DataError: CP218.
    """
    home, real = folder.resolve(), path.resolve()
    if real.is_relative_to(home):
        return
    if home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs"):
        return
    raise DataError(
        "CP218",
        f"{path} leads out of {folder}, to {real}. If that is what you want, name the file itself, "
        "or copy it into the folder.",
    )


def check_saved(folder: Path) -> None:
    """Refuse a data set of ``save_to_disk`` that lists files outside its folder.

    Args:
        folder: with a ``state.json``, or a ``dataset_dict.json`` that names folders with one.

    Raises:
        DataError: CP218; CP210 where these files are not what they should be.
    """
    splits = folder / "dataset_dict.json"
    for home in _folders(_read(splits), folder) if splits.exists() else [folder]:
        check_enclosed(home, folder)
        state = home / "state.json"
        for name in ("state.json", "dataset_info.json"):
            check_enclosed(home / name, folder)
        for file in _files(_read(state)) if state.exists() else ():
            check_enclosed(home / file, folder)


def _folders(content: Any, folder: Path) -> Iterator[Path]:
    names = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _broken(folder / "dataset_dict.json", "it names no splits")
    yield from (folder / name for name in names)


def _files(content: Any) -> Iterator[str]:
    listed = content.get("_data_files") if isinstance(content, dict) else None
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            yield str(entry.get("filename"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, why: str) -> DataError:
    return DataError("CP210", f"{path}: part of a saved data set that does not open: {why}.")
