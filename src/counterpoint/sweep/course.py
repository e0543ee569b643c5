"""The runs of a sweep, each in a process and a folder of its own, until all of them are done.

A trial's folder is a run's: what a kill interrupts resumes from its last checkpoint. A run that
fails is noted down with what it said last, and the next one begins.

Not here: which setting is next (``study``).
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from counterpoint.checkpoint.lock import locked
from counterpoint.console.child import last_words, terminated_as
from counterpoint.errors import CounterpointError, SetupError
from counterpoint.runlog import METRICS, RUN_FILE, read_run
from counterpoint.sweep.study import Study, Trial
from counterpoint.trainer.place import Interrupted

LOGS = "logs"
"""Folder of what the runs said."""

_PAUSE = 0.05
_COUNTED = ("finished", "stopped")


@dataclass(frozen=True, slots=True)
class RunJudge:
    """What a run is judged by.

    Args:
        metric: as an evaluation names it.
        more_is_better: of the metric.
        takes_best: whether a run counts by its best evaluation, whose weights it keeps, and not by
            its last one.
    """

    metric: str
    more_is_better: bool
    takes_best: bool = False

    def value_of(self, folder: Path) -> float | None:
        """The metric of a run's folder; None where the run has not given it.

        Raises:
            SetupError: CP507 for a log that cannot be read.
        """
        lines = read_run(folder, (METRICS,)).metrics
        values = [float(line[self.metric]) for line in lines if self.metric in line]
        if not values:
            return None
        finite = [value for value in values if math.isfinite(value)]
        if self.takes_best and finite:
            return max(finite) if self.more_is_better else min(finite)
        return values[-1]


@dataclass(frozen=True, slots=True)
class Course:
    """How the trials of a sweep are trained.

    Args:
        folder: of the sweep.
        words: of ``counterpoint train``, without what varies and where it goes.
        judge: of the runs.
        jobs: processes at a time, at least 1.
        most: trials in all.
    """

    folder: Path
    words: tuple[str, ...]
    judge: RunJudge
    jobs: int
    most: int

    def run_folder(self, trial: Trial) -> Path:
        """Where a trial's run lies."""
        return self.folder / f"trial-{trial.number:03d}"

    def log(self, trial: Trial) -> Path:
        """What a trial's run has said."""
        return self.folder / LOGS / f"trial-{trial.number:03d}.log"

    def command(self, trial: Trial) -> list[str]:
        """The words that start a trial's run, or resume it."""
        varied = [f"--{name}={value}" for name, value in trial.point.items()]
        own = [f"--output_dir={self.run_folder(trial)}", "--resume=auto"]
        # -P: no file of the working folder passes for a library
        start = [sys.executable, "-P", "-m", "counterpoint", "train"]
        return [*start, *self.words, *varied, *own]

    def complete(
        self, study: Study, begun: Callable[[Trial], None], told: Callable[[Trial], None]
    ) -> None:
        """Train what is left of a sweep.

        Args:
            study: of the sweep.
            begun: is called with each trial before it trains.
            told: is called with each trial that is over.

        Raises:
            KeyboardInterrupt: after the running trials have saved and ended.
        """
        going: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
        due = study.interrupted()
        with terminated_as(Interrupted), _ended_with(going):
            while True:
                while len(going) < self.jobs:
                    trial = due.pop(0) if due else study.following(self.most)
                    if trial is None:
                        break
                    begun(trial)
                    if not self._is_over(trial):
                        going[trial.number] = trial, self._start(trial)
                    else:  # it ended, and a kill came before that was noted down
                        told(self._settle(study, trial, 0))
                if not going:
                    return
                over = [one for one in going.values() if one[1].poll() is not None]
                for trial, process in over:
                    del going[trial.number]
                    told(self._settle(study, trial, process.returncode))
                if not over:
                    time.sleep(_PAUSE)

    def _start(self, trial: Trial) -> subprocess.Popen[bytes]:
        folder, log = self.run_folder(trial), self.log(trial)
        _wait_for(folder)
        if not (folder / RUN_FILE).is_file():  # what a kill left before the run had begun
            shutil.rmtree(folder, ignore_errors=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # in a session of its own: Ctrl-C reaches the sweep alone, which ends it once
            return subprocess.Popen(
                self.command(trial),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "110"},
            )

    def _is_over(self, trial: Trial) -> bool:
        folder = self.run_folder(trial)
        try:
            ended = read_run(folder, ()).facts.get("ended") or {}
            over = ended.get("state") in _COUNTED and not ended.get("error")
            return over and self.judge.value_of(folder) is not None
        except SetupError:
            return False

    def _settle(self, study: Study, trial: Trial, code: int) -> Trial:
        """Note down what a run came to."""
        reason = last_words(self.log(trial), code) if code else ""
        value = None
        if not reason:
            try:
                value = self.judge.value_of(self.run_folder(trial))
            except CounterpointError as error:
                reason = str(error)
        if value is not None and math.isfinite(value):
            study.finish(trial.number, value)
            return Trial(trial.number, trial.point, "finished", value)
        reason = reason or (
            f"no evaluation gave {self.judge.metric}"
            if value is None
            else f"{self.judge.metric} is {value}"
        )
        study.fail(trial.number, reason)
        return Trial(trial.number, trial.point, "failed", None, reason)


def _wait_for(folder: Path) -> None:
    """Wait for a run of this trial that has outlived the sweep that began it."""
    while folder.is_dir():
        try:
            with locked(folder):
                return
        except SetupError as error:
            if error.code != "CP516":
                raise
            time.sleep(10 * _PAUSE)


@contextmanager
def _ended_with(going: dict[int, tuple[Trial, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """Let the runs save and end where the sweep ends before them."""
    try:
        yield
    except BaseException:
        for _, process in going.values():
            process.terminate()
        for _, process in going.values():
            process.wait()
        raise
