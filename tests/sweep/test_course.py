"""A sweep goes on after a failure and after a kill, and asks for the same settings as without."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra [sweep] is not installed")

from counterpoint.runlog import RUN_FILE
from counterpoint.sweep.course import Course, RunJudge
from counterpoint.sweep.space import Axis
from counterpoint.sweep.study import Study, Trial

RUN = """
import json, pathlib, sys
folder, word, value = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if word == "fails":
    sys.exit("counterpoint: CP301 no model of that name")
folder.mkdir(exist_ok=True)
(folder / "began").write_text("")
if word == "waits" and not (folder / "go").exists():
    (folder / "run.json").write_text(json.dumps({"options": {}}))
    __import__("time").sleep(60)
lines = [{"step": 1, "time": 1e9, "eval_loss": 0.5}]
lines += [{"step": 2, "time": 1e9, "eval_loss": float(value)}] if value else []
(folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in lines))
(folder / "run.json").write_text(json.dumps({"ended": {"state": "finished", "step": 2}}))
"""
"""What a run's process does, without its training."""


@dataclass(frozen=True, slots=True)
class Quick(Course):
    def command(self, trial: Trial) -> list[str]:
        word, _, value = next(iter(trial.point.values())).partition(":")
        folder = str(self.run_folder(trial))
        return [sys.executable, "-S", "-c", RUN, folder, word, value]


JUDGE = RunJudge("eval_loss", more_is_better=False)


def study_of(folder: Path, *values: str) -> Study:
    return Study(folder, [Axis("x", values)], more_is_better=False, seed=0)


def course_of(folder: Path, most: int, jobs: int = 1) -> Quick:
    return Quick(folder, (), JUDGE, jobs, most)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_counted_and_the_best_is_found(tmp_path: Path, jobs: int) -> None:
    values = ("ok:0.3", "fails:", "ok:0.1", "ok:nan", "ok:0.2")
    study, told = study_of(tmp_path, *values), list[Trial]()
    course_of(tmp_path, len(values), jobs).complete(study, lambda _: None, told.append)
    found = study.trials()
    assert [one.point["x"] for one in found] == list(values)
    assert [one.value for one in found] == [0.3, None, 0.1, None, 0.2]
    assert "CP301 no model of that name" in found[1].reason
    assert "nan" in found[3].reason
    best = study.best()
    assert best is not None
    assert best.number == 2
    assert sorted(one.number for one in told) == list(range(len(values)))
    # again: nothing is left, and nothing is done twice
    course_of(tmp_path, len(values)).complete(study_of(tmp_path, *values), told.append, told.append)
    assert len(told) == len(values)


def test_an_interrupted_trial_is_taken_up_in_its_folder(tmp_path: Path) -> None:
    study = study_of(tmp_path, "waits:0.1", "ok:0.4")
    course, killers = course_of(tmp_path, 2), list[subprocess.Popen[bytes]]()

    def kill_soon(trial: Trial) -> None:
        if trial.number == 0:
            script = (
                "import os, sys, time, pathlib\n"
                "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\n"
                f"os.kill({os.getpid()}, {int(signal.SIGTERM)})"
            )
            began = course.run_folder(trial) / RUN_FILE
            killers.append(subprocess.Popen([sys.executable, "-S", "-c", script, str(began)]))

    with pytest.raises(KeyboardInterrupt):
        course.complete(study, kill_soon, lambda _: None)
    assert [one.wait() for one in killers] == [0]
    assert [one.state for one in study.trials()] == ["running"]
    folder = course.run_folder(study.trials()[0])
    (folder / "go").write_text("")  # what a checkpoint would be: the same folder is seen again
    resumed = study_of(tmp_path, "waits:0.1", "ok:0.4")
    course.complete(resumed, lambda _: None, lambda _: None)
    assert [one.value for one in resumed.trials()] == [0.1, 0.4]


def test_a_trial_whose_run_is_over_is_not_trained_again(tmp_path: Path) -> None:
    study = study_of(tmp_path, "fails:")
    trial = study.following(1)
    assert trial is not None
    course = course_of(tmp_path, 1)
    folder = course.run_folder(trial)
    folder.mkdir()
    ended = {"ended": {"state": "finished", "step": 2}}
    (folder / RUN_FILE).write_text(json.dumps(ended))
    line = {"step": 2, "time": 1e9, "eval_loss": 0.7}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    course.complete(study_of(tmp_path, "fails:"), lambda _: None, lambda _: None)
    assert study.trials()[0].value == 0.7


def test_the_settings_follow_from_seed_and_results_wherever_a_sweep_was_cut(tmp_path: Path) -> None:
    axes = [Axis("lr", (), 1e-6, 1e-3, log=True), Axis("r", (), 1, 9, whole=True)]

    def asked(folder: Path, often: int, reopened: bool) -> list[dict[str, str]]:
        folder.mkdir()
        study = Study(folder, axes, more_is_better=False, seed=3)
        for _ in range(often):
            if reopened:
                study = Study(folder, axes, more_is_better=False, seed=3)
            trial = study.following(often)
            assert trial is not None
            study.finish(trial.number, abs(math.log(float(trial.point["lr"]) / 3e-5)))
        return [one.point for one in study.trials()]

    whole = asked(tmp_path / "whole", 9, reopened=False)
    assert whole == asked(tmp_path / "cut", 9, reopened=True)
    assert len({point["lr"] for point in whole}) == 9
    assert all(1e-6 <= float(one["lr"]) <= 1e-3 and one["r"].isdigit() for one in whole)


def test_a_grid_that_a_kill_left_half_asked_misses_no_point(tmp_path: Path) -> None:
    study = study_of(tmp_path, "a", "b")
    study._study.ask()  # its setting was never written
    again = study_of(tmp_path, "a", "b")
    found = [again.following(2), again.following(2), again.following(2)]
    assert [one and one.point for one in found] == [{"x": "a"}, {"x": "b"}, None]


def test_a_run_that_keeps_its_best_weights_counts_by_them(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    lines = [{"step": n, "time": 1e9, "eval_loss": x} for n, x in enumerate((0.5, 0.2, 0.4))]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert JUDGE.value_of(tmp_path) == 0.4
    assert RunJudge("eval_loss", False, takes_best=True).value_of(tmp_path) == 0.2
    assert RunJudge("eval_other", False).value_of(tmp_path) is None


def test_a_killed_run_says_so(tmp_path: Path) -> None:
    study = study_of(tmp_path, "waits:0.1")
    course = course_of(tmp_path, 1)
    trial = study.following(1)
    assert trial is not None
    process = course._start(trial)
    while not (course.run_folder(trial) / RUN_FILE).exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert "SIGKILL" in course._settle(study, trial, process.returncode).reason
