"""Files and folders written whole or not at all, and never over another by accident.

What is written here survives a power cut once it has its name: the content is brought to the
disk before the rename, and the folder's entry after it.

Not here: what is in them. Knows no torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from counterpoint.errors import SetupError

_LIMITS = {"PC_NAME_MAX": 255, "PC_PATH_MAX": 4096}
"""Bytes of a name and of a path, where the system does not say."""

_BELOW = 200
"""Bytes that the longest of our own paths below an output folder needs."""

_SHOWN = 60
"""Characters of a name that a message shows."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links answers."""


def refuse_unusable(path: Path) -> None:
    """Refuse a path that no file system takes, or that is surely a slip of the pen.

    Args:
        path: of a file or folder to be; parts of it that exist are left to their owner.

    Raises:
        SetupError: CP501, naming the part and what is wrong with it.
    """
    there, exists = Path(path.anchor), True
    for part in path.parts[1:] if path.anchor else path.parts:
        exists = exists and os.path.lexists(there / part)
        if exists:
            there = there / part
            continue
        wrong = _wrong_with(part, _limit(there, "PC_NAME_MAX"))
        if wrong:
            shown = ascii(part) if len(part) <= _SHOWN else f"{part[:_SHOWN]!a}..."
            raise SetupError(
                "CP501", f"{shown} cannot be the name of a file or folder: it {wrong}."
            )
    size, longest = len(os.fsencode(path.absolute())), _limit(there, "PC_PATH_MAX")
    if size + _BELOW > longest:
        raise SetupError(
            "CP501",
            f"{str(path)[:_SHOWN]}... has {size:,} bytes, and the longest path here {longest:,}, "
            "of which files below it need some. Choose a shorter one.",
        )


def refuse_filled(folder: Path, *, overwrite: bool, never: str = "") -> None:
    """Refuse a folder to be that holds something, or that cannot be one.

    Args:
        folder: which may not be there yet.
        overwrite: what is in it may be written over.
        never: a file that may not be in it even so: loaders would go by it.

    Raises:
        SetupError: CP501 for a file, CP506 for a folder with something in it.
    """
    if folder.exists() and not folder.is_dir():
        raise SetupError("CP501", f"{folder} cannot be written: it is a file.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise SetupError(
            "CP506", f"{folder} holds something already. Name another folder, or add --overwrite."
        )
    if never and (folder / never).exists():
        raise SetupError(
            "CP506",
            f"{folder} holds {never}, by which loaders would take what is written beside it for "
            "something else. Name another folder.",
        )


def _wrong_with(part: str, longest: int) -> str | None:
    """What is wrong with a name, in words that follow "it"."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in part):
        return "holds a control character"
    if part != part.strip():
        return "begins or ends with a space"
    try:
        size = len(os.fsencode(part))
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return f"has {size} bytes, and the longest name here {longest}" if size > longest else None


def _limit(path: Path, name: str) -> int:
    """What the file system of the nearest folder above allows, in bytes."""
    for folder in (path, *path.absolute().parents):
        try:
            return os.pathconf(folder, name)
        except (OSError, ValueError, AttributeError):  # not there, or not a POSIX system
            continue
    return _LIMITS[name]


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where something is already, or where no file can be.

    Args:
        path: of the file to be; its folder need not exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        SetupError: CP501 where it is a folder or no usable name, CP506 where a file is there
            already.
    """
    refuse_unusable(path)
    if path.is_dir():
        raise SetupError("CP501", f"{path} cannot be written: it is a folder.")
    if os.path.lexists(path) and not overwrite:
        raise _taken(path)


def _taken(path: Path) -> SetupError:
    return SetupError("CP506", f"{path} is there already. Choose another name, or add --overwrite.")


@contextmanager
def staged(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file under another name beside its place, flushed to the disk and renamed at the end.

    Args:
        path: of the file to be, or to replace; folders that are missing are made.
        overwrite: whether a file may be replaced that has come to be there by the end; asked of
            the file system in the same act that gives the name.

    Raises:
        SetupError: CP506 where a file is there by now and may not be replaced.
        OSError: where the disk refuses; then nothing is left behind.
    """
    make_folder(path.parent)
    # a name as long as its place has none longer beside it
    beside = path.with_name(f".{path.name[:40]}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            beside.replace(path)
        else:
            _name_if_free(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _name_if_free(beside: Path, path: Path) -> None:
    """Give a file its name unless another has it; both in one act where hard links exist."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise _taken(path) from None
        beside.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and bring their entries to the disk.

    Args:
        folder: may be there already.

    Raises:
        OSError: where the disk refuses.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk, renames among them."""
    if os.name == "nt":  # which opens no folders, and writes their entries itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
            raise
    finally:
        os.close(handle)


def lies_within(home: Path, file: Path) -> bool:
    """Whether a file lies in a folder, or in the same repository of the hub's cache.

    Args:
        home: the folder, resolved.
        file: resolved.
    """
    if file.is_relative_to(home):
        return True
    for parent in home.parents:
        if parent.name == "snapshots":
            return file.is_relative_to(parent.parent / "blobs")
    return False
