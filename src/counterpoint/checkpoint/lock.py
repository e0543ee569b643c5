"""One run a folder: a lock that dies with its owner, and a look at what the folder holds.

A run looks at its folder when it is asked for, and then loads for a while. The lock keeps others
out meanwhile. Where a file system gives no locks, or another program keeps none, the second look
at the first write sees what came to be there (``refuse_changed``).

Not here: whether the folder may be used at all (the command's own checks). Knows no torch.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.runlog import RUN_FILE, course_of
from counterpoint.staged import make_folder

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_MANIFESTS = "checkpoint-*/manifest.json"


@dataclass(slots=True)
class _Held:
    """A folder that this process has locked: the thread that did, and how many times."""

    thread: int
    times: int


_held: dict[tuple[int, Path], _Held] = {}
"""By process, since a fork gets a copy of this, but none of the locks."""

_guard = threading.Lock()

Contents = frozenset[tuple[str, object]]
"""What a second run would lose of a folder: its run, by its beginnings, and its checkpoints."""

_left: dict[Path, Contents] = {}
"""Folders as this process left them, which is no surprise to the next run of this process."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other runs out of a folder; one thread may hold a lock several times.

    Args:
        run: made if it is missing.

    Raises:
        SetupError: CP516 where another process, or another thread of this one, holds it; CP501
            where the lock cannot be a file.
    """
    folder = run.resolve()
    key = os.getpid(), folder
    with _guard:
        held, me = _held.get(key), threading.get_ident()
        if held is None:
            handle = _take(folder)
            _held[key] = _Held(me, 1)
        elif held.thread == me:
            handle = None
            held.times += 1
        else:
            raise _in_use(folder, "another thread of this process")
    try:
        yield
    finally:
        with _guard:
            _held[key].times -= 1
            if not _held[key].times:
                del _held[key]
        if handle is not None:
            # removed while it is held, so that nobody waits for a file without a name
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)


def contents(run: Path) -> Contents:
    """What a folder holds of a run: what ``refuse_changed`` compares.

    Args:
        run: the folder; need not exist.
    """
    facts = course_of(run)
    begun = {(RUN_FILE, str(facts.get(name))) for name in ("started", "resumed") if name in facts}
    manifests = {(path.parent.name, _identity(path)) for path in run.glob(_MANIFESTS)}
    return frozenset(begun | manifests)


def own_change(run: Path) -> None:
    """Remember a folder as this process leaves it; not where it was refused what is there.

    Args:
        run: the folder, locked.
    """
    _left[run.resolve()] = contents(run)


def refuse_changed(run: Path, seen: Contents) -> None:
    """Refuse a folder in which another process has begun or saved a run since it was looked at.

    Args:
        run: the folder, which should be locked by now.
        seen: its ``contents`` then.

    Raises:
        SetupError: CP520, naming what came. What went is nobody's loss.
    """
    names = sorted({name for name, _ in contents(run) - seen - _left.get(run.resolve(), seen)})
    if not names:
        return
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise SetupError(
        "CP520",
        f"{run} got files of another run since this one looked at it: "
        f"{', '.join(names[:3])}{more}. Nothing of them was touched. Choose another output_dir, or "
        "start again once you have seen what is there.",
    )


def _identity(path: Path) -> object:
    """Which file it is: the same after a look, another one after a write."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _in_use(folder: Path, owner: str) -> SetupError:
    by = f" ({owner})" if owner else ""
    return SetupError(
        "CP516",
        f"{folder} is in use by another run{by}. Choose another output_dir, or wait until it has "
        "ended.",
    )


def _take(folder: Path) -> int | None:
    """An open file with the lock on it; None where the system has no locks to give."""
    if fcntl is None:
        return None
    make_folder(folder)
    while True:
        handle = _opened(folder / LOCK)
        try:
            # lockf and not flock: data workers, which are forks, must not inherit it
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 100).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(folder, f"process {owner}" if owner else "") from None
            (folder / LOCK).unlink(missing_ok=True)
            logger().warning("%s cannot be locked against other runs: %s", folder, error)
            return None
        if _is_file(handle, folder / LOCK):
            os.truncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode())
            return handle
        os.close(handle)  # its owner ended in between, and took the file's name away


def _opened(path: Path) -> int:
    # a link is not followed: what it points to would be cut to nothing
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise SetupError(
            "CP501",
            f"{path} cannot be the lock of a run: {error.strerror or error}. Remove it, or choose "
            "another folder.",
        ) from error


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
