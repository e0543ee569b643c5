"""Write a run's own files: ``run.json`` whole or not at all, streams a line at a time.

A disk that is full does not end a training. What cannot be written is kept, one warning says so,
and the next line that can be written brings it along; at the end a warning counts what is lost.

Not here: weights and checkpoints (``checkpoint``), and which secrets are left out (``masking``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import CounterpointError, SetupError, kind_and_line
from counterpoint.log import logger
from counterpoint.masking import Mask
from counterpoint.picture import Picture
from counterpoint.runlog.nouns import (
    BEGUN,
    MARK,
    NOT_FINITE,
    RESUMED,
    RUN_FILE,
    STREAMS,
    Alarm,
    stream_file,
)
from counterpoint.runlog.reading import course_of
from counterpoint.runlog.thumbnails import Thumbnails
from counterpoint.staged import make_folder, refuse_unusable, staged
from counterpoint.strict import is_odd, spelt

_BLOCK = 2**16

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft")


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that could not be written, without creating it.

    Args:
        folder: where the run would write; need not exist.

    Raises:
        SetupError: CP501, naming the part of the path that is in the way.
    """
    refuse_unusable(Path(folder))
    path = Path(folder).absolute()
    try:
        existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
        if not existing.is_dir():
            what = "a file" if existing.exists() else "a link to nothing"
            raise SetupError("CP501", f"{path} cannot be a folder: {existing} is {what}.")
        # asking for permission is not enough: it is granted to root on read-only file systems
        probe = existing / f".counterpoint-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            "CP501",
            f"{path} cannot be written: {error.strerror or error}. Choose another folder.",
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python, Counterpoint and the libraries that compute."""
    found = {"python": platform.python_version(), "counterpoint": __version__}
    return found | {name: one for name in LIBRARIES if (one := _version(name)) is not None}


@cache
def _version(name: str) -> str | None:
    """Of an installed package; each reading parses its metadata, and every checkpoint asks."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class RunLog:
    """Writes a run's own files; one writer a run, the main process.

    Args:
        folder: the run directory; created with the first file.
        writes: False for the other ranks, whose calls do nothing.
    """

    def __init__(self, folder: str | Path, *, writes: bool = True) -> None:
        """Look at what an earlier run left in the folder; nothing is written yet."""
        self.folder, self.writes = Path(folder), writes
        self._earlier = course_of(self.folder)
        self._from = self._whole_sizes()
        self._ends = dict(self._from)  # where this log has left each stream
        self._course: dict[str, Any] = {
            "started": None,
            "resumed": [],
            "steps": None,
            "ended": None,
        }
        self._facts: Mapping[str, Any] = {}
        self._described = self._warned = False
        self._held: list[tuple[str, str]] = []
        self._mended: set[str] = set()
        self._thumbnails = Thumbnails(self.folder, self._warn)
        self._resumed_at: int | None = None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``run.json`` with the facts, the course of the run, versions and command line.

        Args:
            facts: JSON-ready; secrets are left out at any depth.

        Raises:
            OSError: where it cannot be written the first time; later a warning says so.
        """
        self._facts = facts
        self._write_facts()

    @property
    def described(self) -> bool:
        """Whether ``run.json`` is of the training that this log is of."""
        return self._described

    def append(self, stream: str, entry: Mapping[str, Any] | Alarm) -> None:
        """Append one line to a stream, with the "time" in seconds since 1970.

        What cannot be written is kept for the next call.

        Args:
            stream: one of ``STREAMS``.
            entry: JSON-ready, with its "step".
        """
        self._resumed_at = None
        self._hold(stream, asdict(entry) if isinstance(entry, Alarm) else entry)
        self._write_held()

    def shown(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """What a line says of the pictures of its prompt; small ones are kept beside the streams.

        Args:
            pictures: of the prompt, in order.

        Returns:
            To be merged into the line; empty without pictures.
        """
        if not pictures or not self.writes:
            return {}
        return {"pictures": self._thumbnails.told_of(pictures)}

    # ---- the course of a run ----

    def begun(self) -> None:
        """Training begins at step 0: what an earlier one left in the streams counts no more."""
        if self._resumed_at == 0:  # it is known already
            return
        now = self._whole_sizes()
        for stream, own in self._from.items():
            # another trainer may have written here since
            begin = own if now[stream] == self._ends[stream] else now[stream]
            if begin:
                self._mark(stream, {MARK: BEGUN, "step": 0, "from": begin})
        self._go_on({"started": _now(), "resumed": [], "steps": None, "ended": None})

    def resumed(self, step: int, lengths: Mapping[str, int] | None = None) -> None:
        """Training resumes from a checkpoint: what was written beyond it no longer counts.

        Args:
            step: optimizer step of the checkpoint, at least 0; saying it twice marks it once.
            lengths: of the streams when the checkpoint was written, from ``lengths``. Of a stream
                that is not in it lines of later steps count no more.
        """
        if step == self._resumed_at:
            return
        now = _now()
        known = lengths or {}
        for stream in STREAMS:
            to = {"to": known[stream]} if stream in known else {}
            self._mark(stream, {MARK: RESUMED, "step": step, **to})
        so_far = self._course if self._course["started"] is not None else self._earlier
        resumes = [*so_far.get("resumed", []), {"step": step, "time": now}]
        course = {"started": so_far.get("started", now), "resumed": resumes}
        self._go_on({**course, "steps": None, "ended": None})
        self._resumed_at = step

    def planned(self, steps: int) -> None:
        """The running training is one of so many optimizer steps, those before it included."""
        if self._course["steps"] != steps:
            self._go_on({**self._course, "steps": steps})

    def lengths(self) -> dict[str, int]:
        """Bytes of each stream as it stands, brought to the disk: what a checkpoint remembers."""
        self._write_held()
        for stream in STREAMS:
            path = stream_file(self.folder, stream)
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
        return self._whole_sizes()

    def ended(self, state: str, step: int, error: BaseException | None = None) -> None:
        """Training is over; ``run.json`` says how.

        Args:
            state: "finished", "stopped" before its last step, "interrupted" or "failed".
            step: optimizer steps that were done.
            error: what ended it, if anything did.
        """
        end = {"state": state, "step": step, "time": _now()}
        told = {} if error is None else {"error": _told(error)}
        self._go_on({**self._course, "ended": end | told})
        self._from = self._whole_sizes()  # whatever comes now belongs to the next training
        if self._held:
            logger().warning(
                "%d lines of the run's log could not be written and are lost: %s",
                len(self._held),
                self.folder,
            )

    def _go_on(self, course: dict[str, Any]) -> None:
        self._course = course
        self._write_held()
        if self._described:
            self._write_facts()

    # ---- writing ----

    def _whole_sizes(self) -> dict[str, int]:
        return {stream: _whole_size(stream_file(self.folder, stream)) for stream in STREAMS}

    def _write_facts(self) -> None:
        if not self.writes:
            return
        mask = Mask()
        content = {
            **mask.of({**self._facts, **self._course}),
            "versions": versions(),
            "command": mask.words(sys.argv),
        }
        try:
            with staged(self.folder / RUN_FILE) as file:
                file.write(f"{_json(content, mask, indent=2)}\n".encode())
        except OSError as error:
            if not self._described:
                raise
            self._warn(error)
        self._described = True

    def _mark(self, stream: str, mark: Mapping[str, Any]) -> None:
        """Hold a mark, where there is something that it could override."""
        held = any(name == stream for name, _ in self._held)
        if held or _whole_size(stream_file(self.folder, stream)):
            self._hold(stream, mark)

    def _hold(self, stream: str, content: Mapping[str, Any]) -> None:
        if self.writes:
            mask = Mask()
            self._held.append((stream, _json({**mask.of(content), "time": _now()}, mask)))

    def _write_held(self) -> None:
        """Write what is held, as far as the disk lets it."""
        try:
            while self._held:
                stream, line = self._held[0]
                make_folder(self.folder)
                path = stream_file(self.folder, stream)
                if stream not in self._mended:
                    _mend(path)
                    self._mended.add(stream)
                self._ends[stream] = _append(path, f"{line}\n".encode())
                del self._held[0]
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger().warning(
                "%s cannot be written: %s. Training goes on; the lines of its log are kept in "
                "memory and written as soon as that is possible.",
                self.folder,
                error.strerror or error,
            )
        self._warned = True


def _now() -> float:
    return round(time.time(), 3)


def _whole_size(path: Path) -> int:
    """Bytes of a stream's whole lines; what a killed process left of its last one is not one."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def _told(error: BaseException) -> dict[str, str | None]:
    """The code of an error, if it has one, and one line for people."""
    if isinstance(error, CounterpointError):
        return {"code": error.code, "seen": " ".join(error.message.split())}
    return {"code": None, "seen": kind_and_line(error)}


def _json(content: Mapping[str, Any], mask: Mask, indent: int | None = None) -> str:
    def plain(value: Any) -> Any:
        """A number of some library as a number, anything else as text."""
        number = value.item() if hasattr(value, "item") else None
        if isinstance(number, float) and not math.isfinite(number):
            return str(number)
        return number if isinstance(number, bool | int | float) else mask.text(str(value))

    return json.dumps(_strict(content), indent=indent, default=plain, allow_nan=False)


def _strict(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: such numbers stand apart, by name, as words.

    Deeper down a word takes the number's own place.
    """
    odd = {name: str(value) for name, value in content.items() if is_odd(value)}
    kept = {name: spelt(value) for name, value in content.items() if name not in odd}
    return {**kept, NOT_FINITE: odd} if odd else kept


def _append(path: Path, line: bytes) -> int:
    """Append a whole line or nothing; where the file then ends."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    return end + len(line)


def _mend(path: Path) -> None:
    """Cut off what is no whole line."""
    if path.is_file() and path.stat().st_size > _whole_size(path):
        os.truncate(path, _whole_size(path))
