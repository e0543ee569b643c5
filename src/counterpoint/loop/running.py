"""Doing what is left of a loop: each stage a process of its own command, one after the other.

A stage that outlives the loop that began it holds a file that the next one waits for, so that no
two of them write to one file.

Not here: which stages there are (``stages``), whether they are done (``ledger``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from counterpoint.console.child import last_words, terminated_as
from counterpoint.console.phases import phase
from counterpoint.errors import SetupError
from counterpoint.loop.ledger import LoopLedger
from counterpoint.loop.stages import LoopCourse, Stage
from counterpoint.trainer.place import Interrupted

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

STAGE_LOGS = "logs"
"""Folder of what the stages said."""

_HELD = ".stage"


def log_of(course: LoopCourse, stage: Stage) -> Path:
    """What a stage has said.

    Args:
        course: of the loop.
        stage: of it.
    """
    return course.folder / STAGE_LOGS / f"{stage.key.replace('/', '-')}.log"


class Started(Protocol):
    """A stage's process."""

    def wait(self) -> int:
        """Its exit code, once it has one; below 0 for a signal."""

    def terminate(self) -> None:
        """Ask it to end."""


def start_stage(stage: Stage, log: BinaryIO, held: BinaryIO) -> Started:
    """Start a stage's process.

    Args:
        stage: to be done.
        log: takes what it says.
        held: open in the process as long as it lives.
    """
    # -P: no file of the working folder passes for a library
    launcher = stage.launcher or (sys.executable, "-P")
    return subprocess.Popen(
        [*launcher, "-m", "counterpoint", *stage.words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # in a session of its own: Ctrl-C reaches the loop alone, which ends it once
        start_new_session=True,
        pass_fds=(held.fileno(),) if os.name == "posix" else (),
        env={**os.environ, "COLUMNS": "110"},
    )


def complete_loop(
    course: LoopCourse,
    ledger: LoopLedger,
    told: Callable[[Stage, str | None], None],
) -> None:
    """Do every stage that is not done.

    Args:
        course: of the loop.
        ledger: of its folder, which this process has locked.
        told: is called with each stage before it is done, and why; with None where it is done.

    Raises:
        SetupError: CP538 for an output that was changed by hand, CP539 for a stage that failed.
        KeyboardInterrupt: after the stage has ended.
    """
    with _held(course.folder) as held, terminated_as(Interrupted):
        for stage in course.stages():
            why = ledger.why(stage)
            told(stage, why)
            if why is not None:
                ledger.begin(stage)
                with phase(f"round {stage.round}, {stage.name}"):
                    _do(course, stage, held)
                ledger.end(stage)


def _do(course: LoopCourse, stage: Stage, held: BinaryIO) -> None:
    log = log_of(course, stage)
    log.parent.mkdir(parents=True, exist_ok=True)
    stage.writes[0].parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        try:
            process = start_stage(stage, file, held)
        except OSError as error:  # a launcher that is not installed
            raise SetupError(
                "CP539", f"round {stage.round}, {stage.name} cannot be started: {error}."
            ) from error
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise SetupError(
            "CP539",
            f"round {stage.round}, {stage.name}: {last_words(log, code)}; see {log}. What is done "
            "stays, and the same command resumes the loop.",
        )
    absent = [path for path in stage.writes if not path.exists()]
    if absent:
        raise SetupError("CP539", f"round {stage.round}, {stage.name} left no {absent[0]}.")


@contextmanager
def _held(folder: Path) -> Iterator[BinaryIO]:
    """A file that every stage inherits with its lock; the lock ends with the last who has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _HELD).open("ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
