"""Small pictures beside the samples: what a report needs when the data have moved.

    _thumbnails/DIGEST.jpg    of each picture that a prompt of samples.jsonl shows, written once

The name begins with _ so that ``push_to_hub`` leaves the folder where it is. A line of
``samples.jsonl`` says of each picture its file's name, its size and digest, and the digest of the
small one, so that another one in its place is known for another.

Not here: making a picture small (``counterpoint.thumbnail``), showing it (``report.album``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import CounterpointError
from counterpoint.picture import Picture
from counterpoint.staged import lies_within, staged
from counterpoint.thumbnail import MOST_BYTES, thumbnail_of

FOLDER = "_thumbnails"

MOST = 64
"""Pictures of a run that are kept so: two MiB at most."""

GONE, OTHER = "gone", "other"
"""What may have become of a small picture: it is not there, or it is another one."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Thumbnails:
    """The small pictures of a run, each written once.

    Args:
        folder: of the run.
        warn: is told of a disk that refuses; then the picture is not kept.
    """

    def __init__(self, folder: Path, warn: Callable[[OSError], None]) -> None:
        self._folder, self._warn = folder, warn
        self._known: dict[str, dict[str, Any]] = {}

    def told_of(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """What a line says of pictures; small ones of those that are new are written.

        Args:
            pictures: of a prompt, in order.
        """
        found = []
        for one in pictures:
            if one.digest not in self._known:
                self._known[one.digest] = self._kept(one)
            file = Path(one.source).name if isinstance(one.source, str) else ""
            size = {"width": one.width, "height": one.height}
            found.append({"file": file, **size, "digest": one.digest, **self._known[one.digest]})
        return found

    def _kept(self, picture: Picture) -> dict[str, Any]:
        if len(self._known) >= MOST:
            return {"thumbnail": None, "why": "many"}
        try:
            content = thumbnail_of(picture.load())
            with staged(_path(self._folder, picture.digest)) as file:
                file.write(content)
        except CounterpointError as error:  # it was there when its row was read
            return {"thumbnail": None, "why": error.code}
        except OSError as error:
            self._warn(error)
            return {"thumbnail": None, "why": "disk"}
        return {"thumbnail": hashlib.sha256(content).hexdigest()}


def kept_thumbnail(folder: Path, told: Mapping[str, Any]) -> bytes | str:
    """The small picture that a line of ``samples.jsonl`` tells of; nothing there is trusted.

    Args:
        folder: of the run.
        told: of the picture, with a "thumbnail".

    Returns:
        The file's content; or what became of it: ``GONE`` or ``OTHER``.
    """
    digest = told.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return GONE
    path = _path(folder, digest)
    try:
        if not path.is_file() or not lies_within(folder.resolve(), path.resolve()):
            return GONE
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, RuntimeError):  # a link to itself
        return GONE
    same = len(content) <= MOST_BYTES and hashlib.sha256(content).hexdigest() == told["thumbnail"]
    return content if same else OTHER


def clear_thumbnails(folder: Path) -> None:
    """Remove the small pictures of an earlier run, and nothing else.

    Args:
        folder: of the run.
    """
    home = folder / FOLDER
    if home.is_symlink() or not home.is_dir():
        return
    for path in home.iterdir():
        if path.suffix == ".jpg" and _DIGEST.fullmatch(path.stem):
            path.unlink(missing_ok=True)
    if not any(home.iterdir()):
        os.rmdir(home)


def pictures_in_line(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the pictures that a sample's prompt shows: with its text they say which it is.

    Args:
        line: of ``samples.jsonl``.
    """
    return tuple(str(one.get("digest", "")) for one in line.get("pictures") or ())


def _path(folder: Path, digest: str) -> Path:
    return folder / FOLDER / f"{digest}.jpg"
