"""Runs of made-up log lines: which alarm sounds, when, since when, and how often."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from counterpoint.alarms.remedies import Facts, clip, halve_the_rate, hold_the_chosen
from counterpoint.alarms.watch import REST, Watch
from counterpoint.runlog import Alarm

PAIRS = 32
FACTS = Facts(step_pairs=PAIRS, learning_rate=2e-4)
LINES = 120

Shape = Callable[[int], float]
"""A metric's mean at a line."""

SOUND: dict[str, Shape] = {
    "loss": lambda n: 0.1 + 0.6 * math.exp(-n / 40),
    "grad_norm": lambda n: 1.0,
    "rewards/margins": lambda n: 3 * (1 - math.exp(-n / 40)),
    "rewards/accuracies": lambda n: 0.5 + 0.45 * (1 - math.exp(-n / 20)),
    "nll_loss": lambda n: 1.8 + 0.1 * n / LINES,
}
NOISE = {
    "loss": 0.02,
    "grad_norm": 0.2,
    "rewards/margins": 0.2,
    "rewards/accuracies": 0.5 / math.sqrt(PAIRS),
    "nll_loss": 0.05,
}


def lines(*, seed: int = 0, count: int = LINES, every: int = 1, **shapes: Shape) -> list[Any]:
    """Log lines with Gaussian noise around their shapes, those of a sound run unless given."""
    rng = random.Random(seed)
    named = {name: shapes.get(name.split("/")[-1], shape) for name, shape in SOUND.items()}

    def value(name: str, number: int) -> float:
        drawn = named[name](number) + rng.gauss(0, NOISE[name])
        if name == "rewards/accuracies":
            return min(1.0, max(0.0, drawn))
        return drawn if name == "rewards/margins" else max(1e-3, drawn)

    return [
        {"step": every * (number + 1), **{name: value(name, number) for name in named}}
        for number in range(count)
    ]


def evaluation(step: int, accuracy: float, nll: float = 1.8, name: str = "eval") -> dict[str, Any]:
    """Of a set of 200 pairs."""
    return {
        "step": step,
        f"{name}_rewards/accuracies": accuracy,
        f"{name}_nll_loss": nll,
        f"{name}_runtime": 0.5,
        f"{name}_samples_per_second": 400.0,
    }


def alarms(history: list[Any], facts: Facts = FACTS) -> list[Alarm]:
    watch = Watch(facts)
    return [alarm for entry in history for alarm in watch.observe(entry)]


def codes(history: list[Any], facts: Facts = FACTS) -> list[str]:
    return [alarm.code for alarm in alarms(history, facts)]


def always(value: float, n: int) -> float:
    return value


def after(turn: int, before: Shape, later: Shape) -> Shape:
    return lambda n: before(n) if n < turn else later(n)


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_run_raises_none(seed: int) -> None:
    assert codes(lines(seed=seed)) == []


def test_a_run_that_learns_nothing_at_all_raises_none() -> None:
    """Nothing moves: that is for the parameters to say, and no curve can tell noise from it."""
    flat = {name.split("/")[-1]: partial(always, shape(0)) for name, shape in SOUND.items()}
    for seed in range(20):
        assert codes(lines(seed=seed, **flat)) == []


def test_a_chosen_that_falls_while_the_margin_rises_is_displaced() -> None:
    falling = after(40, lambda n: 1.8, lambda n: 1.8 + (n - 40) / 40)
    (alarm,) = alarms(lines(nll_loss=falling))
    assert alarm.code == "CW421"
    assert 36 <= alarm.since <= 45
    assert 75 <= alarm.step <= 90
    assert alarm.fix == "cpo_alpha: 2"
    assert "while the margin rose" in alarm.seen


def test_some_tenths_of_a_nat_are_no_displacement() -> None:
    assert codes(lines(nll_loss=lambda n: 1.8 + 0.8 * n / LINES)) == []


def test_a_chosen_that_falls_for_nothing_is_an_nll_above_its_start() -> None:
    still = {"margins": lambda n: 0.3, "nll_loss": lambda n: 1.8 + 2 * n / LINES}
    (alarm,) = alarms(lines(**still))
    assert (alarm.code, alarm.fix) == ("CW422", "learning_rate: 0.0001")


def test_a_margin_that_is_lost_again_has_collapsed() -> None:
    rise_and_fall = after(60, lambda n: n / 10, lambda n: 6 - (n - 60) / 5)
    (alarm,) = alarms(lines(margins=rise_and_fall))
    assert alarm.code == "CW423"
    assert 58 <= alarm.since <= 63
    assert 73 <= alarm.step <= 80


def test_accuracy_below_chance_is_an_alarm_and_a_bad_start_that_improves_is_none() -> None:
    (alarm,) = alarms(lines(accuracies=lambda n: 0.3))
    assert alarm.code == "CW424"
    assert codes(lines(accuracies=lambda n: 0.2 + 0.7 * min(1, n / 20))) == []
    assert codes(lines(accuracies=lambda n: 0.1 + 0.3 * min(1, n / 40))) == []
    assert codes(lines(accuracies=lambda n: 0.3, count=22)) == []


def test_accuracy_is_not_judged_before_the_learning_rate_is_reached() -> None:
    late = Facts(step_pairs=PAIRS, warmup_steps=60)
    (alarm,) = alarms(lines(accuracies=lambda n: 0.3), late)
    assert alarm.step == 80
    assert codes(lines(accuracies=lambda n: 0.3, count=60), late) == []


def test_the_bound_on_accuracy_is_that_of_a_coin_over_the_pairs_seen() -> None:
    """0.4 is nothing over steps of two pairs, and a certainty over steps of 256."""
    assert codes(lines(accuracies=lambda n: 0.4), Facts(step_pairs=2)) == []
    assert codes(lines(accuracies=lambda n: 0.4), Facts(step_pairs=256)) == ["CW424"]


def test_pairs_of_skipped_steps_are_not_counted() -> None:
    history = lines(accuracies=lambda n: 0.3, every=10)
    for number, line in enumerate(history):
        line["skipped_steps"] = 9.95 * number
    assert codes(history, Facts(step_pairs=2)) == []
    assert codes(lines(accuracies=lambda n: 0.3, every=10), Facts(step_pairs=2)) == ["CW424"]


@pytest.mark.parametrize(("name", "code"), [("loss", "CW425"), ("grad_norm", "CW426")])
def test_a_spike_is_an_alarm_of_its_line(name: str, code: str) -> None:
    history = lines()
    history[70][name] *= 30
    (alarm,) = alarms(history)
    assert (alarm.code, alarm.step, alarm.since) == (code, 71, 71)


def test_a_hard_pair_among_many_that_are_won_is_no_spike() -> None:
    history = lines(loss=lambda n: 2.0 if n < 20 else 0.02)
    history[70]["loss"] = 0.2
    assert codes(history) == []
    history[70]["loss"] = 4.0
    assert codes(history) == ["CW425"]


def test_a_line_twice_the_usual_is_no_spike_where_lines_differ_as_much() -> None:
    rng = random.Random(0)
    history = lines()
    for line in history:
        line["grad_norm"] = math.exp(rng.gauss(0, 0.7))
    assert codes(history) == []


def test_each_alarm_sounds_once_an_episode() -> None:
    history = lines(accuracies=lambda n: 0.3 if n < 40 or n > 80 else 0.9)
    assert codes(history) == ["CW424", "CW424"]
    spikes = lines()
    for at in (60, 64, 68, 68 + REST + 1):
        spikes[at]["loss"] *= 50
    assert codes(spikes) == ["CW425", "CW425"]


def test_training_and_evaluation_that_contradict_each_other_are_an_alarm() -> None:
    history = [evaluation(0, 0.5), *lines(), evaluation(LINES, 0.1)]
    (alarm,) = alarms(history)
    assert (alarm.code, alarm.step, alarm.since) == ("CW427", LINES, 0)
    assert codes([evaluation(0, 0.5), *lines(), evaluation(LINES, 0.45)]) == []


def test_an_evaluation_below_chance_before_anything_is_learnt_is_none() -> None:
    flat = lines(accuracies=lambda n: 0.5, count=30)
    assert codes([evaluation(0, 0.1), *flat, evaluation(30, 0.1)]) == []


def test_an_evaluation_set_is_named_and_compared_with_itself() -> None:
    history = [
        evaluation(0, 0.5, nll=1.0, name="eval_easy"),
        evaluation(0, 0.5, nll=4.0, name="eval_hard"),
        *lines(),
        evaluation(LINES, 0.9, nll=2.5, name="eval_easy"),
        evaluation(LINES, 0.9, nll=4.0, name="eval_hard"),
    ]
    (alarm,) = alarms(history)
    assert alarm.code == "CW422"
    assert "of easy fell from -1 to -2.5 nats" in alarm.seen


def test_a_loss_above_its_start_has_diverged() -> None:
    found = codes(lines(loss=lambda n: 0.7 + 0.5 * n / LINES))
    assert found == ["CW428"]


def test_a_resumed_run_hears_nothing_twice_and_misses_nothing() -> None:
    """Cut anywhere: the alarms after the cut are those of the whole run."""
    history = lines(
        accuracies=lambda n: 0.3, nll_loss=after(40, lambda n: 1.8, lambda n: 1.8 + (n - 40) / 30)
    )
    history[100]["loss"] *= 50
    whole = Watch(FACTS)
    heard = [(n, alarm) for n, line in enumerate(history) for alarm in whole.observe(line)]
    assert {alarm.code for _, alarm in heard} == {"CW421", "CW424", "CW425"}
    for cut in range(1, LINES, 7):
        resumed = Watch(FACTS)
        again = [
            (n, alarm) for n in range(cut, LINES) for alarm in resumed.catch_up(history[: n + 1])
        ]
        assert again == [(n, alarm) for n, alarm in heard if n >= cut]


def test_an_nll_without_end_is_no_line_of_its_curve() -> None:
    assert codes(lines(nll_loss=lambda n: math.inf)) == []


def test_lines_without_metrics_are_passed_over() -> None:
    others: list[dict[str, float]] = [
        {"step": 9, "train_loss": 3.0},
        {"step": 9, "loss": 3.0, "rewards/margins": 1.0},
        {"step": 9, "eval_rewards/accuracies": 0.0},
        {"step": 9, "eval_samples/exact_match": 0.0},
    ]
    assert codes(others * 20) == []


def test_the_line_to_paste_follows_from_the_runs_options() -> None:
    assert hold_the_chosen(Facts(8, cpo_alpha=0.03)) == "cpo_alpha: 0.06"
    assert hold_the_chosen(Facts(8, cpo_alpha=0.0)) == "cpo_alpha: 1"
    assert hold_the_chosen(Facts(8, loss_type="simpo", cpo_alpha=0.0)) == "cpo_alpha: 0.05"
    alphapo = Facts(8, loss_type="alphapo", cpo_alpha=0.0, learning_rate=1e-6)
    assert hold_the_chosen(alphapo) == halve_the_rate(alphapo) == "learning_rate: 5e-07"
    assert clip(Facts(8, max_grad_norm=0.0), 3.0) == "max_grad_norm: 6"
    assert clip(Facts(8, max_grad_norm=1.0, learning_rate=1e-4), 3.0) == "learning_rate: 5e-05"
