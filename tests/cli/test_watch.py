"""``watch`` waits for a run, says of how many steps it is, and has a table of several."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from counterpoint.cli import watch as watching
from counterpoint.report.runs_table import runs_table
from counterpoint.runlog import METRICS, RUN_FILE, RunLog
from tests.cli.conftest import Command
from tests.report.runs import STARTED
from tests.terminal import Screen, Terminal

NOW = STARTED + 5.8 * 400 + 1.0


def as_read(folder: Path, width: int = 79, most: int = 20) -> list[str]:
    return runs_table(folder, width, most, NOW)


def described(
    folder: Path, lines: int, every: float, steps: int = 0, end: str = "", step: int = 0
) -> None:
    """A run of some log lines, ten steps apart, the last one at ``NOW``; perhaps with an end."""
    log = RunLog(folder)
    with pytest.MonkeyPatch.context() as patch:
        for number in range(lines + 1):
            at = NOW - every * (lines - number)
            patch.setattr("counterpoint.runlog.writing.time.time", lambda at=at: at)
            if number:
                line = {"step": 10 * number, "loss": 0.5 + number, "rewards/accuracies": 0.71}
                log.append(METRICS, line)
            else:
                log.describe({"options": {}})
                log.begun()
                log.planned(steps)
        if end:
            log.ended(end, step)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    described(tmp_path / "a-finished", 3, 1.0, 30, "finished", 30)
    described(tmp_path / "b-running", 3, 100.0, 1000)
    described(tmp_path / "c-failed", 3, 2.0, 1000, "failed", 31)
    return tmp_path


def test_a_table_has_step_of_steps_loss_accuracy_time_left_and_state(folder: Path) -> None:
    assert as_read(folder) == [
        "run             step  loss  accuracy     left  state",
        "b-running   30/1,000   3.5       71%  2:41:40  running",
        "a-finished     30/30   3.5       71%           finished",
        "c-failed    31/1,000   3.5       71%           failed",
    ]


def test_a_damaged_run_hides_no_other(folder: Path) -> None:
    (folder / "damaged").mkdir()
    (folder / "damaged" / RUN_FILE).write_text("[")
    (folder / "odd").mkdir()
    (folder / "odd" / RUN_FILE).write_text('{"started": "yesterday", "steps": "many"}')
    lines = as_read(folder)
    assert [line.split()[-1] for line in lines[1:]] == [
        "running",
        "finished",
        "failed",
        "unreadable",
        "unreadable",
    ]


def test_no_line_is_wider_than_the_terminal_and_no_name_sends_a_control_character(
    folder: Path,
) -> None:
    described(folder / ("a-very-long-name-of-a-run-" * 4), 3, 100.0, 1_000_000)
    described(folder / "escape-\x1b[2J", 1, 1.0)
    lines = as_read(folder)
    assert max(map(len, lines)) <= 79
    assert any("..." in line for line in lines)
    assert "\x1b" not in "".join(lines)
    assert max(map(len, as_read(folder, width=40))) <= 40


def test_rows_that_have_no_room_are_counted(folder: Path) -> None:
    assert [line.split()[0] for line in as_read(folder, most=2)] == [
        "run",
        "b-running",
        "a-finished",
        "and",
    ]


def test_in_a_pipe_the_table_is_written_once(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command("watch", str(folder))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("run ")
    assert len(said.out.splitlines()) == 4


class Interrupted:
    """A clock that does something each time it is asked to wait, and then is interrupted."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = list(acts)

    def __call__(self, seconds: float) -> None:
        if not self.acts:
            raise KeyboardInterrupt
        self.acts.pop(0)()


def test_a_terminal_shows_the_table_anew_in_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Interrupted(
        lambda: described(folder / "d-new", 3, 1.0, 40), lambda: (folder / "d-new").is_dir()
    )
    monkeypatch.setattr(watching.time, "sleep", wait)
    with Terminal(80) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal.stream)
        watching.watch([str(folder)])
        shown = terminal.shown()
    lines = [line for line in Screen(80).feed(shown).lines() if line]
    assert sum(line.startswith("d-new") for line in lines) == 1
    assert sum(line.startswith("run ") for line in lines) == 1
    assert lines[-1] == "ended"


@pytest.mark.parametrize("there", [False, True])
def test_it_waits_for_a_run_that_has_not_begun(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    folder = tmp_path / "first"
    if there:
        folder.mkdir()
    served: list[Path] = []
    monkeypatch.setattr(watching, "_serve", lambda run, port: served.append(run))
    wait = Interrupted(lambda: None, lambda: described(folder, 1, 1.0))
    monkeypatch.setattr(watching.time, "sleep", wait)
    said = command("watch", str(folder))
    why = "no run has begun there" if there else "there is no such folder yet"
    assert said.out == f"waiting for {folder}: {why} (Ctrl-C ends it)\n"
    assert (said.code, served) == (0, [folder])


def test_ctrl_c_while_it_waits_is_no_failure(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    monkeypatch.setattr(watching.time, "sleep", Interrupted())
    said = command("watch", str(tmp_path / "first"))
    assert (said.code, said.out.splitlines()[-1], said.err) == (0, "ended", "")


def test_a_terminal_shows_how_far_a_served_run_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    drawn = threading.Event()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("counterpoint.report.story.time.time", lambda: NOW)
    monkeypatch.setattr("counterpoint.report.progress.time.time", lambda: NOW)
    real = watching._in_a_line

    def once(folder: Path) -> str:
        if drawn.is_set():
            raise KeyboardInterrupt
        drawn.set()
        return real(folder)

    monkeypatch.setattr(watching, "_in_a_line", once)
    monkeypatch.setattr(watching, "SECONDS_A_LOOK", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with Terminal(100) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal.stream)
        patch.setattr(sys, "stderr", terminal.stream)
        watching.watch(["b-running", "--port", "0"])
        shown = terminal.shown()
    far = "running, at step 30 of 1,000, about 2 h 41 min left, loss 3.5, accuracy 71%"
    assert far in shown
    lines = [line for line in Screen(100).feed(shown).lines() if line]
    assert (len(lines), lines[-1]) == (2, "ended")  # the line is wiped
