"""Read a run's folder, also while it is written: each step once, as it was done last.

Not here: what one line or ``run.json`` may hold (``run_schema``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from counterpoint.errors import SetupError
from counterpoint.run_schema import check_facts, check_line
from counterpoint.runlog.nouns import BEGUN, MARK, NOT_FINITE, RUN_FILE, STREAMS, Run, stream_file
from counterpoint.staged import lies_within
from counterpoint.strict import NUMBERS

MOST_BYTES = 2**26
"""Of ``run.json``; a run's own takes some thousands."""


def read_run(folder: str | Path, streams: Collection[str] = STREAMS) -> Run:
    """Read a run directory, also while it is written.

    Args:
        folder: the run directory.
        streams: those of ``STREAMS`` to read; the others are left empty.

    Returns:
        Each step once, as it was done last.

    Raises:
        SetupError: CP507 where there is no run, or its ``run.json`` or a line cannot be read or
            holds what no run writes (``run_schema``).
    """
    path = Path(folder)
    facts = _facts(path)
    found: dict[str, tuple[Mapping[str, Any], ...]] = dict.fromkeys(STREAMS, ())
    for stream in streams:
        found[stream] = tuple(_that_count(_lines(stream_file(path, stream))))
    return Run(path, facts, **found)


def _facts(folder: Path) -> Mapping[str, Any]:
    """The content of ``run.json``."""
    try:
        _refuse_foreign(folder / RUN_FILE, folder)
        with (folder / RUN_FILE).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        return check_facts(json.loads(content.decode("utf-8")))
    except (OSError, ValueError, RuntimeError) as error:
        raise SetupError(
            "CP507", f"{folder} holds no run: its {RUN_FILE} cannot be read ({error})."
        ) from error


def _refuse_foreign(path: Path, folder: Path) -> None:
    """Refuse what is no file of the run's own; what is not there is nobody's.

    Raises:
        ValueError: for a folder, a pipe, a device, and a link that leads out of the run.
    """
    if os.path.lexists(path):
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        if not lies_within(folder.resolve(), path.resolve()):
            raise ValueError("it leads out of the run's folder")


Placed = tuple[int, Mapping[str, Any]]
"""A line of a stream, and the byte at which it begins."""


def _lines(path: Path) -> Iterator[Placed]:
    """The whole lines of a stream; one that is being written is left for the next time."""
    try:
        _refuse_foreign(path, path.parent)
    except (ValueError, RuntimeError) as error:  # a link to itself
        raise SetupError("CP507", f"{path} is no part of a run: {error}.") from error
    if not path.is_file():
        return
    begin = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                try:
                    found = _with_not_finite(json.loads(line.decode("utf-8")))
                    yield begin, check_line(path.stem, found, MARK)
                except (ValueError, RecursionError) as error:
                    raise SetupError(
                        "CP507", f"{path} line {number} is no line of a run ({error})."
                    ) from error
            begin += len(line)


def _that_count(lines: Iterator[Placed]) -> Iterator[Mapping[str, Any]]:
    """The lines of a stream without its marks and what they override."""
    kept: list[Placed] = []
    for begin, line in lines:
        if MARK in line:
            kept = [(at, one) for at, one in kept if _still_counts(at, one, line)]
        else:
            kept.append((begin, line))
    return (line for _, line in kept)


def _still_counts(begin: int, line: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """Whether a line counts after a later mark."""
    if mark[MARK] == BEGUN:
        return bool(begin >= mark.get("from", 0))
    if "to" in mark:
        return bool(begin < mark["to"])
    return bool(line.get("step", 0) <= mark.get("step", 0))


def course_of(folder: Path) -> Mapping[str, Any]:
    """When a run was started and where it was taken up again, as its ``run.json`` says.

    Args:
        folder: of a run; where its ``run.json`` cannot be read nothing is known.
    """
    try:
        found = _facts(folder)
    except SetupError:
        return {}
    return {name: found[name] for name in ("started", "resumed") if found.get(name)}


def _with_not_finite(line: Any) -> Any:
    """A line with the numbers that ``_strict`` set apart back in it."""
    if not isinstance(line, dict) or not isinstance(line.get(NOT_FINITE), dict):
        return line
    odd = {name: NUMBERS.get(str(word), word) for name, word in line[NOT_FINITE].items()}
    return {name: value for name, value in line.items() if name != NOT_FINITE} | odd
