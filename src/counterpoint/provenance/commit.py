"""The commit of the working folder, read from git's own files.

git is not asked: a repository's configuration can name programs (filters, hooks, an fsmonitor,
pagers, credential helpers, includes of other files), and a working folder may come from a stranger.
Nothing is run here, no configuration is read, and what is read has the form of a name or a commit.

Not here: whether files differ from that commit. Telling would need the filters of the repository.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

MOST_BYTES = 2**26
"""Of a file of git's that is read; packed references of large repositories have megabytes."""

MOST_STEPS = 5
"""References that refer to the next one, as git itself follows them."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"refs/[^\x00-\x20\\:?*~^\x7f]+")


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in a folder.

    Args:
        folder: in a working tree, at any depth.

    Returns:
        40 or 64 hexadecimal digits; None outside of a repository, before its first commit, and
        where its files do not say it in one of git's classic ways (files or packed-refs).
    """
    try:
        home = _home(folder.resolve())
        return None if home is None else _resolved(home)
    except (OSError, ValueError):  # gone, not to be read, or a name that no file can have
        return None


def _home(folder: Path) -> Path | None:
    """The repository's own folder: ``.git``, or the one that a file of that name points to."""
    for parent in (folder, *folder.parents):
        found = parent / ".git"
        if found.is_dir():
            return found if (found / "HEAD").exists() else None
        if found.is_file():
            return _named(parent, _text(found).removeprefix("gitdir:"))
    return None


def _named(parent: Path, name: str) -> Path | None:
    """A folder named in a file of git's, of a work tree or a submodule."""
    name = name.strip()
    # two slashes or backslashes name another machine, which would be asked for it
    if not name or re.match(r"[\\/]{2}", name) or "\0" in name:
        return None
    return parent / name


def _resolved(home: Path) -> str | None:
    homes = [home]
    if (home / "commondir").is_file():  # of a further work tree: its branches lie with the first
        shared = _named(home, _text(home / "commondir"))
        homes += [] if shared is None else [shared]
    name = "HEAD"
    for _ in range(MOST_STEPS):
        found = next((text for at in homes if (text := _reference(at, name))), "")
        if _COMMIT.fullmatch(found):
            return found
        name = found.removeprefix("ref:").strip()
        if not _REFERENCE.fullmatch(name) or ".." in name:
            return None
    return None


def _reference(home: Path, name: str) -> str:
    """What a reference of a repository says; "" where there is none of that name."""
    if (home / name).is_file():
        return _text(home / name).strip()
    if not (home / "packed-refs").is_file():
        return ""
    for line in _text(home / "packed-refs").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return ""


def _text(path: Path) -> str:
    """The content of a plain file; a pipe or a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MOST_BYTES)
