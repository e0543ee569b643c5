"""The runs of a folder as a table of the terminal: where each is, and when it will be done.

Not here: asking again (``cli.watch``), what a run's state is (``report.story``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.console.phases import clock
from counterpoint.errors import CounterpointError
from counterpoint.masking import masked
from counterpoint.metric_names import WORDS
from counterpoint.report.charts import number
from counterpoint.report.progress import progress_of
from counterpoint.report.story import last_sign, state_of
from counterpoint.runlog import METRICS, RUN_FILE, Run, read_run
from counterpoint.visible import visible
from counterpoint.wrap import columns, cut_text, padded

HEAD = ("run", "step", WORDS["loss"], WORDS["rewards/accuracies"], "left", "state")
UNREADABLE = "unreadable"
LEAST = 12
"""Columns of a name, at least."""


@dataclass(frozen=True, slots=True)
class Row:
    """A run of the table.

    Args:
        cells: as ``HEAD`` names them.
        running: whether it still trains.
        sign: when it last wrote something, in seconds since 1970.
    """

    cells: tuple[str, ...]
    running: bool
    sign: float


def holds_runs(folder: Path) -> bool:
    """Whether the folders of a folder are runs."""
    return any(folder.glob(f"*/{RUN_FILE}"))


def runs_table(folder: Path, width: int, most: int, now: float | None = None) -> list[str]:
    """Every run of a folder, those still running first, then the newest.

    Args:
        folder: of the runs' folders.
        width: columns of a line.
        most: rows that have room, at least 1.
        now: seconds since 1970; None asks the clock.
    """
    rows = [_row(path.parent, now) for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
    rows.sort(key=lambda row: (not row.running, -row.sign))
    drawn = [HEAD, *(row.cells for row in rows[:most])]
    sizes = [max(columns(cells[place]) for cells in drawn) for place in range(len(HEAD))]
    room = width - sum(sizes[1:]) - 2 * (len(sizes) - 1)
    sizes[0] = min(sizes[0], max(LEAST, room))
    lines = list(_drawn(drawn, sizes, width))
    if len(rows) > most:
        lines.append(f"and {len(rows) - most:,} more")
    return lines


def numbers_of(run: Run) -> Mapping[str, str]:
    """Loss and accuracy of the last training line, as words; what is not known is left out."""
    line: Mapping[str, Any] = next((one for one in reversed(run.metrics) if "loss" in one), {})
    share = line.get("rewards/accuracies")
    told = {} if "loss" not in line else {WORDS["loss"]: number(float(line["loss"]))}
    if share is not None:
        told[WORDS["rewards/accuracies"]] = f"{float(share):.0%}"
    return told


def _row(folder: Path, now: float | None) -> Row:
    name = " ".join(visible(masked(folder.name)).split())
    try:
        run = read_run(folder, (METRICS,))
        state, far, found = state_of(run, now), progress_of(run, now), numbers_of(run)
        left = "" if state != "running" or far.left is None else clock(far.left)
        cells = (
            name,
            far.counted,
            found.get("loss", ""),
            found.get("accuracy", ""),
            left,
            state,
        )
        return Row(cells, state == "running", last_sign(run))
    except CounterpointError:  # one damaged run hides no other
        return Row((name, "", "", "", "", UNREADABLE), False, 0.0)


def _drawn(rows: list[tuple[str, ...]], sizes: list[int], width: int) -> Iterator[str]:
    for name, *numbers, state in rows:
        first = name if columns(name) <= sizes[0] else f"{cut_text(name, sizes[0] - 3)[0]}..."
        cells = [padded(first, sizes[0])]
        cells += [f"{cell:>{size}}" for cell, size in zip(numbers, sizes[1:], strict=False)]
        yield cut_text("  ".join([*cells, state]).rstrip(), width)[0]
