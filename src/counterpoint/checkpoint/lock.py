"""One run a folder: a lock that dies with its owner.

Not here: whether the folder may be used at all (the command's own checks). Knows no torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counterpoint.errors import SetupError
from counterpoint.runlog import logger

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_held: dict[Path, int] = {}
"""Folders that this process has locked, and how many times it holds each."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other runs out of a folder; a process may hold a lock several times.

    Args:
        run: made if it is missing.

    Raises:
        SetupError: CP516 where another process holds it.
    """
    folder = run.resolve()
    handle = None if folder in _held else _take(folder)
    _held[folder] = _held.get(folder, 0) + 1
    try:
        yield
    finally:
        _held[folder] -= 1
        if not _held[folder]:
            del _held[folder]
        if handle is not None:
            # removed while it is held, so that nobody waits for a file without a name
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)


def _take(folder: Path) -> int | None:
    """An open file with the lock on it; None where the system has no locks to give."""
    if fcntl is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # lockf and not flock: data workers, which are forks, must not inherit it
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 100).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise SetupError(
                    "CP516",
                    f"{folder} is in use by another run{f' (process {owner})' if owner else ''}. "
                    "Choose another output_dir, or wait until it has ended.",
                ) from None
            logger().warning("%s cannot be locked against other runs: %s", folder, error)
            return None
        if _is_file(handle, folder / LOCK):
            os.truncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode())
            return handle
        os.close(handle)  # its owner ended in between, and took the file's name away


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
