"""The file that candidates are written to: it only grows, and can be resumed.

Beside it lies what they were drawn by (``NAME.settings.json``), so that no candidate of another
sampling comes to stand among them. Whole lines are appended and flushed to the disk; one that a
kill has torn is taken off before anything is added. One process writes at a time.

Not here: what is drawn (``sampling``). Knows no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from counterpoint.errors import DataError, SetupError
from counterpoint.log import logger
from counterpoint.staged import make_folder, staged
from counterpoint.strict import strict_json

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Line = TypeVar("Line")

Place = tuple[str, int, int]
"""Of a candidate: its model's name, its prompt's row, its number."""

MODELS = "models"
"""Settings of each model by its name; other models may be added to a file."""

EARLIER = "earlier"
"""Of a model's settings: what they were before they changed, and candidates written until then."""

_SAID_SO = {"endpoint": "add --new_address if that very model is served there, "}
"""What else helps where a setting differs that may change."""


class CandidateFile:
    """A file of candidates, open for more; see ``open_candidates``.

    Args:
        path: of the file.
        file: open, at its end.
        settings: what candidates are drawn by.
    """

    def __init__(self, path: Path, file: BinaryIO, settings: dict[str, Any]) -> None:
        self.path, self.settings, self._file = path, settings, file
        self.written: set[Place] = set()

    def admit(self, model: str, about: Mapping[str, Any], may_change: Sequence[str] = ()) -> None:
        """Say which weights a model's candidates are drawn from, or are to be drawn from on.

        Args:
            model: its name.
            about: its settings.
            may_change: those that may be others than before; what they were is kept beside them.

        Raises:
            SetupError: CP534 where the file has candidates of other weights by that name.
        """
        models = self.settings.setdefault(MODELS, {})
        now = dict(about)
        if model in models:
            before = {name: one for name, one in models[model].items() if name != EARLIER}
            changed = {
                name: before[name]
                for name in may_change
                if name in before and before[name] != about.get(name)
            }
            _refuse_other(self.path, {**before, **{n: about[n] for n in changed}}, about, model)
            if not changed:
                return
            drawn = sum(place[0] == model for place in self.written)
            until = {**changed, "candidates": drawn - _counted(models[model])}
            now[EARLIER] = [*models[model].get(EARLIER, ()), until]
        models[model] = now
        write_settings(self.path, self.settings)

    def refuse_other_way(self, model: str, about: Mapping[str, Any]) -> None:
        """Refuse to complete what was drawn otherwise, also where nothing is left to draw.

        Args:
            model: its name.
            about: some of its settings; None for what is not given.

        Raises:
            SetupError: CP534 where the file has candidates by that name with others.
        """
        before = self.settings.get(MODELS, {}).get(model)
        if before is not None:
            _refuse_other(self.path, {name: before.get(name) for name in about}, about, model)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add candidates, on the disk when this returns.

        Args:
            rows: with ``model``, ``row`` and ``candidate``.
        """
        rows = list(rows)
        lines = [strict_json(row, ensure_ascii=False) for row in rows]
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.written.update(map(_place, rows))


@contextmanager
def open_candidates(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[CandidateFile]:
    """Begin a file of candidates, or resume it.

    Args:
        path: of the file; folders that are missing are made.
        settings: what candidates are drawn by, as JSON has it.
        overwrite: begin anew where a file is there.

    Raises:
        SetupError: CP506 for a file that is no sampling's, CP534 for one that was drawn by other
            settings, CP535 for one that another process writes to.
        DataError: CP210 for a line within it that is no candidate.
    """
    make_folder(path.parent)
    with path.open("a+b") as file:
        lock_file(file, path)
        if overwrite:
            file.truncate(0)
        before = read_settings(path)
        if file.seek(0, os.SEEK_END) == 0:
            before = dict(settings)
            write_settings(path, before)
        elif before is None:
            raise SetupError(
                "CP506",
                f"{path} is there already, and nothing beside it says how it was sampled. Choose "
                "another name, or add --overwrite.",
            )
        mine = {name: value for name, value in before.items() if name != MODELS}
        _refuse_other(path, mine, settings)
        found = CandidateFile(path, file, before)
        found.written = set(whole_lines(path, file, _place, "candidate of counterpoint sample"))
        yield found


def settings_path(path: Path) -> Path:
    """Where lies what candidates were drawn by.

    Args:
        path: of their file.
    """
    return path.with_name(f"{path.name}.settings.json")


def lock_file(file: BinaryIO, path: Path) -> None:
    """Keep other processes from writing candidates to a file.

    Raises:
        SetupError: CP535 where one does.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SetupError(
            "CP535",
            f"another process writes candidates to {path}. Wait for it, or choose another name.",
        ) from error
    except OSError:  # a file system without locks
        return


def read_settings(path: Path) -> dict[str, Any] | None:
    """What lies beside a file of candidates or pairs; None where nothing does that can be read."""
    try:
        found = json.loads(settings_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Put beside a file what it was made by."""
    text = json.dumps(settings, ensure_ascii=False, indent=1, allow_nan=False)
    with staged(settings_path(path)) as file:
        file.write(f"{text}\n".encode())


def _refuse_other(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], model: str = ""
) -> None:
    whose = f"{model}, " if model else ""
    for name in {**before, **now}:
        then, wanted = before.get(name), now.get(name)
        if then != wanted:
            raise SetupError(
                "CP534",
                f"{path} holds candidates that were drawn with {whose}{name}="
                f"{shown_setting(then)}, and now it is {shown_setting(wanted)}. Resume it as it "
                f"began, {_SAID_SO.get(name, '')}name another file with --out, or begin anew with "
                "--overwrite.",
            )


def _counted(about: Mapping[str, Any]) -> int:
    """Candidates that a model's earlier settings account for."""
    return sum(one["candidates"] for one in about.get(EARLIER, ()))


def shown_setting(value: Any) -> str:
    """A setting's value as a message shows it."""
    text = strict_json(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_lines(path: Path, file: BinaryIO, read: Callable[[Any], Line], what: str) -> list[Line]:
    """What the lines of a file hold; what stands behind the last whole one is taken off.

    A last line that is whole but for its end, as an editor or a kill can leave it, gets that.

    Args:
        path: of the file.
        file: open for reading and writing; at its end afterwards.
        read: a line's JSON -> what is wanted of it; KeyError and the like where that is not there.
        what: a line is, for messages.

    Raises:
        DataError: CP210 for a line within that is something else.
    """
    file.seek(0)
    found, whole = list[Line](), 0
    for number, line in enumerate(file, 1):
        ended = line.endswith(b"\n")
        try:
            found.append(read(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if not ended:
                break
            raise DataError(
                "CP210",
                f"{path}, line {number}: is no {what}. Repair or remove the line; or begin anew "
                "with --overwrite.",
            ) from error
        whole += len(line)
        if not ended:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            file.flush()
            whole += 1
    torn = file.seek(0, os.SEEK_END) - whole
    if torn:
        logger().warning("%s: its last line was torn, and is taken off", path)
        file.truncate(whole)
        file.seek(0, os.SEEK_END)
    return found


def _place(row: Mapping[str, Any]) -> Place:
    return str(row["model"]), int(row["row"]), int(row["candidate"])
