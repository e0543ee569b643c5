"""Samples before and now: which changes are an alarm, and which could be chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.alarms.of_samples import CHANCE, by_chance, degenerate, degenerate_in_run
from counterpoint.alarms.remedies import Facts
from counterpoint.runlog import SAMPLES, RunLog

GOOD: dict[str, Any] = {"completion": "a good text", "tokens": 4, "ended": True, "repetition": 0.0}
REPEATING = {"completion": "na na na na na", "tokens": 6, "repetition": 0.8}
EMPTY = {"completion": " \n", "tokens": 1}
ENDLESS = {"completion": "and so on and", "tokens": 7, "ended": False}


def look(step: int, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    """A look at as many prompts as there are changes, each from a good sample."""
    return [
        {"step": step, "kind": "greedy", "prompt": f"prompt {n}", "reference": None, **GOOD, **one}
        for n, one in enumerate(changes)
    ]


def codes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    return [alarm.code for alarm in degenerate(before, now)]


@pytest.mark.parametrize(
    ("change", "code"), [(REPEATING, "CW431"), (EMPTY, "CW432"), (ENDLESS, "CW433")]
)
def test_samples_that_all_went_wrong_raise_the_alarm_of_what_they_became(
    change: dict[str, Any], code: str
) -> None:
    before, now = look(0, *[{}] * 5), look(40, *[change] * 5)
    (alarm,) = degenerate(before, now)
    assert (alarm.code, alarm.step, alarm.since) == (code, 40, 40)
    assert alarm.seen.startswith("5 of 5 samples ")


def test_samples_that_stay_as_they_were_raise_none() -> None:
    assert codes(look(0, *[{}] * 9), look(40, *[{}] * 9)) == []


def test_what_the_model_did_before_training_is_not_blamed_on_it() -> None:
    for change in (REPEATING, EMPTY, ENDLESS):
        assert codes(look(0, *[change] * 9), look(40, *[change] * 9)) == []


def test_four_prompts_are_too_few_and_five_are_enough() -> None:
    assert codes(look(0, *[{}] * 4), look(9, *[REPEATING] * 4)) == []
    assert codes(look(0, *[{}] * 5), look(9, *[REPEATING] * 5)) == ["CW431"]


def test_as_many_that_came_right_outweigh_those_that_went_wrong() -> None:
    before = look(0, *[{}] * 5, *[REPEATING] * 5)
    now = look(9, *[REPEATING] * 5, *[{}] * 5)
    assert codes(before, now) == []


def test_texts_twice_as_long_are_an_alarm_and_a_little_longer_ones_are_not() -> None:
    before = look(0, *[{"tokens": 10}] * 6)
    assert codes(before, look(9, *[{"tokens": 19}] * 6)) == []
    assert codes(before, look(9, *[{"tokens": 20}] * 6)) == ["CW433"]


def test_an_alarm_is_raised_once_while_it_lasts_and_again_after_it_was_over() -> None:
    start, bad, good = look(0, *[{}] * 5), [REPEATING] * 5, [{}] * 5
    first = look(10, *bad)
    assert codes(start, first) == ["CW431"]
    assert codes(start + first, look(20, *bad)) == []
    over = start + first + look(20, *good)
    assert codes(over, look(30, *bad)) == ["CW431"]


def test_greedy_and_sampled_texts_of_a_prompt_are_compared_with_their_own_kind() -> None:
    before = [{**one, "kind": "sampled"} for one in look(0, *[{}] * 9)]
    assert codes(before, look(9, *[REPEATING] * 9)) == []


def test_the_first_look_raises_nothing() -> None:
    assert codes([], look(0, *[REPEATING] * 9)) == []


def test_a_run_is_compared_with_its_own_earlier_samples_of_the_same_set(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    assert degenerate_in_run(tmp_path, look(0, *[REPEATING] * 5)) == ()
    log.describe({})
    for name, change in (("eval_a", {}), ("eval_b", REPEATING)):
        for sample in look(0, *[change] * 5):
            log.append(SAMPLES, {**sample, "set": name})
    now = {
        name: [{**s, "set": name} for s in look(9, *[REPEATING] * 5)]
        for name in ("eval_a", "eval_b")
    }
    for sample in now["eval_a"]:  # of this look, not of an earlier one
        log.append(SAMPLES, sample)
    assert [alarm.code for alarm in degenerate_in_run(tmp_path, now["eval_a"])] == ["CW431"]
    assert degenerate_in_run(tmp_path, now["eval_b"]) == ()


def test_the_sign_test_counts_tosses_of_a_coin() -> None:
    assert by_chance(5, 0) == 1 / 32 == CHANCE
    assert by_chance(0, 0) == 1.0
    assert by_chance(9, 1) == pytest.approx(11 / 1024)
    assert by_chance(3, 5) > 0.5


def test_the_line_to_paste_follows_from_the_runs_options() -> None:
    (alarm,) = degenerate(
        look(0, *[{}] * 5), look(9, *[REPEATING] * 5), Facts(step_pairs=8, cpo_alpha=0.25)
    )
    assert alarm.fix == "cpo_alpha: 0.5"
