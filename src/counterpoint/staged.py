"""Files written whole or not at all, and never over another by accident.

Not here: what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from counterpoint.errors import SetupError


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where something is already.

    Args:
        path: of the file to be; its folder need not exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        SetupError: CP501 where it is a folder, CP506 where a file is there already.
    """
    if path.is_dir():
        raise SetupError("CP501", f"{path} cannot be written: it is a folder.")
    if path.exists() and not overwrite:
        raise SetupError(
            "CP506", f"{path} is there already. Choose another name, or add --overwrite."
        )


@contextmanager
def staged(path: Path) -> Iterator[BinaryIO]:
    """A file under another name beside its place, flushed to the disk and renamed at the end.

    Args:
        path: of the file to be, or to replace; folders that are missing are made.

    Raises:
        OSError: where the disk refuses; then nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
