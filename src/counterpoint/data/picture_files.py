"""The files in which pictures of rows lie: below which folder, and whether they have changed.

1. A data set that ``sources`` reads from files knows its folder. Paths of its pictures are looked
   up there, and none may lead out of it. One that a script made has none: then it is the folder in
   which the process runs.
2. A prepared set is found again only if none of its pictures' files has another size or time.

Not here: opening one (``pictures``).
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from counterpoint.data import cache
from counterpoint.data.formats import pictures_in
from counterpoint.data.pictures import PictureRules, is_remote, picture_source
from counterpoint.data.remote import kept_at
from counterpoint.errors import DataError

NOWHERE = ""
"""The folder of a data set whose pictures may lie in no file."""

_FOLDERS: dict[str, str] = {}
"""Folders by a mark in a set's own description, which nobody can have written there before."""


def in_folder(data: Any, folder: Path | None) -> Any:
    """Remember where a data set lies; what is selected or mapped from it remembers it too.

    Args:
        data: a data set, a stream, or a dict of either.
        folder: in which its files are; None: in several, or on the hub.

    Returns:
        The same.
    """
    for one in data.values() if isinstance(data, Mapping) else [data]:
        mark = f"counterpoint:{secrets.token_hex(16)}"
        _FOLDERS[mark] = NOWHERE if folder is None else str(folder.resolve())
        one.info.homepage = mark
    return data


def in_same_folder(data: Any, folder: str | None) -> Any:
    """A data set that was made of another's rows, in that one's folder.

    Args:
        data: the new one.
        folder: as ``folder_of`` said of the other.
    """
    if folder is None or folder_of(data) == folder:
        return data
    return in_folder(data, Path(folder) if folder else None)


def folder_of(data: Any) -> str | None:
    """Where a data set lies; None for one that was made in a script.

    Args:
        data: rows of any kind.
    """
    if not isinstance(data, Dataset | IterableDataset):
        return None
    return _FOLDERS.get(str(data.info.homepage))


def rules_for(rules: PictureRules | None, folder: str | None) -> PictureRules | None:
    """The rules of a run for one of its data sets.

    Args:
        rules: of the run; None for a model that sees nothing.
        folder: of the data, where the rules name none.
    """
    if rules is None:
        return None
    kept = rules.downloads or (_downloads() if rules.allow_remote else None)
    own = folder if rules.folder is None else rules.folder
    return replace(rules, folder=own, downloads=kept)


def _downloads() -> str:
    """Where fetched pictures are kept: in the cache, or as long as this process runs."""
    home = cache.folder()
    return _scratch() if home is None else str(home / "pictures")


@functools.cache
def _scratch() -> str:
    found = tempfile.mkdtemp(prefix="counterpoint-pictures-")
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def files_seen(dataset: Dataset, rules: PictureRules | None, folder: str | None) -> list[Any]:
    """Path, size and time of each file that rows have a picture in.

    Args:
        dataset: raw rows.
        rules: what may be opened; None for a model that sees nothing.
        folder: of the data, where the rules name none.
    """
    rules = rules_for(rules, folder)
    if rules is None:
        return []
    # nothing is fetched to find a name: what was fetched before is a file
    local, downloads = replace(rules, allow_remote=False), rules.downloads
    found: list[Any] = [rules.folder, rules.most_pixels]
    for number, raw in enumerate(dataset):
        try:
            cells = pictures_in(raw, number)
        except DataError:
            continue  # it is refused when it is encoded
        for cell in cells:
            try:
                if downloads is not None and is_remote(cell.value):
                    source: Any = kept_at(cell.value, downloads)
                else:
                    source = picture_source(cell, number, local)
                if isinstance(source, str):
                    facts = os.stat(source)
                    found.append([source, facts.st_size, facts.st_mtime_ns])
            except (DataError, OSError, ValueError) as error:
                found.append([number, type(error).__name__])
    return found
