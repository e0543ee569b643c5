"""The first words of a report say how the run stands, and no more than is known."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from counterpoint.doctor.table import TABLE
from counterpoint.report.curves import read_series
from counterpoint.report.progress import progress_of
from counterpoint.report.story import (
    QUIET,
    alarm_kinds,
    duration,
    figures,
    method,
    span,
    state_in_words,
    state_of,
    verdict,
)
from counterpoint.runlog import Run, RunLog, read_run

NOW = 1_000_000.0


def run(
    steps: int = 20,
    facts: dict[str, Any] | None = None,
    alarms: tuple[Any, ...] = (),
    age: float = 1,
) -> Run:
    metrics = tuple({"step": n, "loss": 1.0, "time": NOW - age} for n in range(1, steps + 1))
    return Run(Path("runs/first"), facts or {}, metrics, alarms, (), ())


def alarm(code: str, step: int, since: int | None = None) -> dict[str, Any]:
    return {"code": code, "step": step, "since": step if since is None else since, "seen": "seen"}


FINISHED = {"ended": {"state": "finished", "step": 20}}


def test_a_finished_run_without_an_alarm_is_healthy() -> None:
    found = verdict(run(facts=FINISHED), NOW)
    assert (found.tone, found.headline) == ("good", "Healthy")
    assert found.sentence == "No alarm was raised in 20 steps."


def test_alarms_are_counted_and_the_first_one_is_named_with_its_beginning() -> None:
    alarms = (alarm("CW202", 15), alarm("CW101", 9, 4), alarm("CW101", 12))
    found = verdict(run(facts=FINISHED, alarms=alarms), NOW)
    assert (found.tone, found.headline) == ("warn", "3 alarms")
    assert found.sentence == f"First CW101, {TABLE['CW101'].title}: from step 4, seen at step 9."


def test_a_failed_run_says_its_error_whatever_else_there_is() -> None:
    facts = {"ended": {"state": "failed", "step": 20, "error": "CP401 loss is nan"}}
    found = verdict(run(facts=facts, alarms=(alarm("CW101", 9),)), NOW)
    assert (found.tone, found.headline) == ("bad", "Failed")
    assert found.sentence == "CP401 loss is nan 1 alarm before that."


def test_an_error_of_the_run_log_is_its_code_and_what_was_seen() -> None:
    error = {"code": "CP401", "seen": "loss is nan"}
    failed = run(facts={"ended": {"state": "failed", "step": 20, "error": error}})
    assert verdict(failed, NOW).sentence == "CP401 loss is nan"
    error = {"code": None, "seen": "ValueError: no"}
    failed = run(facts={"ended": {"state": "failed", "step": 20, "error": error}})
    assert verdict(failed, NOW).sentence == "ValueError: no"


def test_a_run_that_an_alarm_stopped_says_so() -> None:
    facts = {"ended": {"state": "stopped", "step": 20}}
    found = verdict(run(facts=facts, alarms=(alarm("CW101", 20),)), NOW)
    assert found.tone == "bad"
    assert found.sentence.endswith("from step 20; the run was stopped.")


@pytest.mark.parametrize(("age", "state"), [(1, "running"), (QUIET + 1, "gone")])
def test_a_run_without_an_end_goes_on_until_it_has_been_quiet_for_long(
    age: float, state: str
) -> None:
    assert state_of(run(age=age), NOW) == state


def test_a_run_with_rare_lines_is_given_the_time_that_its_lines_take() -> None:
    lines = tuple({"step": n, "time": NOW - age} for n, age in ((50, 3300), (100, 1800)))
    assert state_of(Run(Path(), {}, lines, (), (), ()), NOW) == "running"  # 1,500 s a line
    assert state_of(Run(Path(), {}, lines, (), (), ()), NOW + 3000) == "gone"


def test_a_run_whose_training_has_not_begun_is_not_gone(tmp_path: Path) -> None:
    RunLog(tmp_path).describe({"objective": "loss"})
    assert state_in_words(read_run(tmp_path)) == "running, at step 0"
    assert state_of(read_run(tmp_path), time.time() + QUIET + 1) == "gone"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"steps": 60, "started": NOW - 100}, "running, at step 20 of 60, about 3 min 20 s left"),
        ({"options": {"max_steps": 60}, "started": NOW - 100}, "running, at step 20 of 60, about"),
        ({"options": {"max_steps": -1}, "started": NOW - 100}, "running, at step 20"),
        ({"steps": 60, "ended": {"state": "failed", "step": 21}}, "failed at step 21 of 60"),
        ({"steps": 60, "ended": {"state": "interrupted", "step": 20}}, "interrupted at step 20 of"),
        ({"steps": 20, "ended": {"state": "finished", "step": 20}}, "finished after 20 steps"),
    ],
)
def test_a_run_says_of_how_many_steps_it_is(facts: dict[str, Any], words: str) -> None:
    assert state_in_words(run(facts=facts, age=0), NOW).startswith(words)


def test_the_time_left_is_that_of_the_process_that_trains() -> None:
    """Ten seconds a step in the first life, two in the second: 30 steps to go, 4 s gone."""
    first = [{"step": n, "time": 1000.0 + 10 * n} for n in range(1, 11)]
    second = [{"step": n, "time": 9000.0 + 2 * (n - 10)} for n in range(11, 21)]
    facts = {"started": 1000.0, "resumed": [{"step": 10, "time": 9000.0}], "steps": 50}
    found = progress_of(Run(Path(), facts, (*first, *second), (), (), ()), 9024.0)
    assert (found.step, found.steps, found.left) == (20, 50, 56.0)
    assert found.counted == "20/50"


def test_with_one_line_the_pace_is_that_since_the_beginning() -> None:
    line = {"step": 10, "time": 1030.0}
    found = progress_of(Run(Path(), {"started": 1000.0, "steps": 20}, (line,), (), (), ()), 1040.0)
    assert found.left == 20.0


def test_without_a_line_no_time_is_known() -> None:
    found = progress_of(Run(Path(), {"started": 1000.0, "steps": 20}, (), (), (), ()), 1040.0)
    assert (found.step, found.left, found.counted) == (0, None, "0/20")


def test_the_last_line_of_transformers_is_an_end() -> None:
    ended = Run(Path(), {}, ({"step": 5, "train_runtime": 61.0},), (), (), ())
    assert state_in_words(ended, NOW) == "finished after 5 steps"
    assert duration(ended) == "61 s"


def test_nothing_logged_is_no_health() -> None:
    assert verdict(run(0), NOW).tone == "plain"


def test_alarms_of_a_code_are_one_kind_numbered_by_their_first_time() -> None:
    kinds = alarm_kinds([alarm("CW202", 15), alarm("CW101", 12), alarm("CW101", 9, 4)])
    assert [(kind.number, kind.code, kind.steps, kind.since) for kind in kinds] == [
        (1, "CW101", (9, 12), (4, 12)),
        (2, "CW202", (15,), (15,)),
    ]
    assert kinds[0].meaning is TABLE["CW101"]


def test_a_code_that_is_not_in_the_table_is_shown_all_the_same() -> None:
    [kind] = alarm_kinds([alarm("CW999", 3)])
    assert "does not know" in kind.meaning.title


def test_figures_are_of_the_evaluation_where_there_is_one() -> None:
    lines = [
        {"step": 1, "loss": 9.0, "rewards/margins": 0.1, "eval_loss": 3.0},
        {"step": 2, "loss": 8.0, "rewards/margins": 0.2, "eval_loss": 2.0},
    ]
    shown = [(f.label, f.before, f.value, f.set_name) for f in figures(read_series(lines))]
    assert shown == [
        ("Loss", "3", "2", "evaluation"),
        ("Reward margin", "0.1", "0.2", "training"),
    ]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"loss_type": "sigmoid", "cpo_alpha": 1.0}, "CPO"),
        ({"loss_type": "sigmoid", "cpo_alpha": 0}, "CPO without its NLL term"),
        ({"loss_type": "simpo", "cpo_alpha": 0.0}, "SimPO"),
        ({"loss_type": "simpo", "cpo_alpha": 1.0}, "CPO-SimPO"),
        ({}, "a run"),
    ],
)
def test_the_method_has_its_fields_name(options: dict[str, Any], name: str) -> None:
    assert method(run(facts={"options": options})) == name


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (41, "41 s"), (125, "2 min 05 s"), (7500, "2 h 05 min"), (2e5, "2 d 7 h")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words
