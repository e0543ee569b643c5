"""The file of scored candidates: a line each in the order of the candidates, so that it resumes.

As many lines as are there are done. Lines are appended whole and flushed to the disk, and one that
a kill has torn is taken off. Beside the file lies what it was scored by (``NAME.settings.json``).

Not here: the scores (``scorer``, ``total``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from counterpoint.errors import SetupError
from counterpoint.evaluation.candidate_file import (
    lock_file,
    read_settings,
    shown_setting,
    whole_lines,
    write_settings,
)
from counterpoint.scoring.entries import CandidateEntries
from counterpoint.staged import make_folder
from counterpoint.strict import strict_json

INPUT, SCORERS, SOURCES, SAMPLED = "candidates", "scorers", "sources", "sampled"
"""Keys of the settings: what was scored, by what, from which files, and how these were drawn."""


class ScoredFile:
    """A file of scored candidates, open for more; see ``open_scored``.

    Args:
        file: open, at its end.
        done: lines that it holds.
    """

    def __init__(self, file: BinaryIO, done: int) -> None:
        self._file, self.done = file, done

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the next rows, on the disk when this returns.

        Args:
            rows: in the order of the candidates.
        """
        lines = [f"{strict_json(row, ensure_ascii=False)}\n" for row in rows]
        # half of a surrogate pair cannot be written as it is, only as JSON spells it
        self._file.write("".join(lines).encode(errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(lines)


@contextmanager
def open_scored(
    path: Path,
    entries: CandidateEntries,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    may_grow: bool = True,
) -> Iterator[ScoredFile]:
    """Begin a file of scored candidates, or resume it.

    Args:
        path: of the file; folders that are missing are made.
        entries: what is scored; a file that was scored before may have grown since.
        settings: what it is scored by, JSON-ready; others are refused.
        about: what else is kept in the settings; it may change.
        overwrite: begin anew where a file is there.
        may_grow: scores stay right where there are more candidates than before.

    Raises:
        SetupError: CP506 for a file that is no scoring's, CP534 for other settings or candidates,
            CP535 for one that another process writes to.
        DataError: CP210 for a line within it that is no scored candidate.
    """
    make_folder(path.parent)
    with path.open("a+b") as file:
        lock_file(file, path)
        if overwrite:
            file.truncate(0)
        done = 0
        if file.seek(0, os.SEEK_END) != 0:
            before = read_settings(path)
            if before is None or SCORERS not in before:
                raise SetupError(
                    "CP506",
                    f"{path} is there already, and nothing beside it says how it was scored. "
                    "Choose another name, or add --overwrite.",
                )
            _refuse_other_scoring(path, before, settings)
            done = len(whole_lines(path, file, lambda row: row["scores"], "scored candidate"))
            _refuse_other_candidates(path, before, entries, done, may_grow)
        candidates = {"lines": len(entries), "digest": entries.digest}
        write_settings(path, {INPUT: candidates, **settings, **about})
        yield ScoredFile(file, done)


def _refuse_other_scoring(
    path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    for name, wanted in settings.items():
        then = before.get(name)
        if then == wanted:
            continue
        if name == SCORERS and isinstance(then, dict):
            one = next(key for key in {**then, **wanted} if then.get(key) != wanted.get(key))
            name, then, wanted = one, then.get(one), wanted.get(one)
        raise SetupError(
            "CP534",
            f"{path} was scored with {name}={shown_setting(then)}, and now it is "
            f"{shown_setting(wanted)}. Resume it as it began, name another file with --out, or "
            "begin anew with --overwrite.",
        )


def _refuse_other_candidates(
    path: Path, before: Mapping[str, Any], entries: CandidateEntries, done: int, may_grow: bool
) -> None:
    """What was scored must still be there; behind it there may be more."""
    then = before.get(INPUT) or {}
    lines = int(then.get("lines", 0))
    most = len(entries) if may_grow else lines
    if done <= lines <= len(entries) <= most and (
        entries.digest if lines == len(entries) else entries.digest_of(lines)
    ) == then.get("digest"):
        return
    raise SetupError(
        "CP534",
        f"{path} holds scores of {lines:,} other candidates. Name another file with --out, or "
        "begin anew with --overwrite.",
    )
