"""The display shows a training on a terminal of any width, and leaves it in order."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from counterpoint import CPOTrainer, TrainingDisplay
from counterpoint.console import display as display_module
from counterpoint.console.panel import PLAIN_WIDTH, View, panel, plain_line
from counterpoint.log import logger
from counterpoint.runlog import Alarm
from tests.steps import random_pairs, train_watched
from tests.terminal import Screen, Terminal

NUMBERS = {
    "loss": 0.61234,
    "grad_norm": 1.5,
    "learning_rate": 1e-6,
    "rewards/accuracies": 0.71,
    "rewards/margins": 0.0342,
    "logps/chosen": -1245.2,
    "pairs_per_second": 12.34,
    "tokens_per_second": 4321.0,
    "step_seconds": 0.5,
    "memory_mb": 800.0,
    "epoch": 0.3,
}
ALARM = Alarm("CW421", step=9, since=4, seen="chosen falls while the margin rises " * 5)


@contextmanager
def at_a_terminal(columns: int) -> Iterator[Terminal]:
    """Standard output and error are a terminal, and nothing else reads along."""
    with Terminal(columns) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal.stream)
        patch.setattr(sys, "stderr", terminal.stream)
        patch.setattr(display_module, "SECONDS_A_DRAW", 0.0)
        patch.setenv("TERM", "xterm-256color")
        handler = logging.StreamHandler()
        logger().addHandler(handler)
        try:
            yield terminal
        finally:
            logger().removeHandler(handler)


class Talk(TrainerCallback):
    """Logs, prints, sounds an alarm, and does what a test wants in the middle of a training."""

    trainer: CPOTrainer

    def __init__(self, at_step_two: Callable[[], None] = lambda: None) -> None:
        self.at_step_two = at_step_two

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        logger().info("logged in step %d, to the end of the line.", state.global_step)
        sys.stdout.write(f"printed in step {state.global_step}\n")
        if state.global_step == 2:
            self.trainer.raise_alarm(ALARM)
            self.at_step_two()


@pytest.fixture
def run(models: Any, chatml_tokenizer: Any, tmp_path: Path) -> Callable[..., CPOTrainer]:
    """Train for four steps with a display; evaluates after the second."""

    def go(display: TrainingDisplay, talk: Talk | None = None, **options: Any) -> CPOTrainer:
        from counterpoint import CPOConfig

        trainer = CPOTrainer(
            model=models(),
            args=CPOConfig(
                **{
                    "output_dir": str(tmp_path / "run"),
                    "per_device_train_batch_size": 2,
                    "max_steps": 4,
                    "logging_steps": 1,
                    "eval_strategy": "steps",
                    "eval_steps": 2,
                    "save_strategy": "no",
                    "disable_tqdm": False,
                    "gradient_checkpointing": False,
                    "use_cpu": True,
                    **options,
                }
            ),
            train_dataset=random_pairs(8),
            eval_dataset=random_pairs(6, seed=1),
            processing_class=chatml_tokenizer,
            callbacks=[display, *([] if talk is None else [talk])],
        )
        if talk is not None:
            talk.trainer = trainer
        trainer.train()
        return trainer

    return go


@pytest.mark.parametrize("columns", [40, 80, 132])
def test_a_terminal_shows_one_panel_and_whatever_was_said_above_it(
    run: Callable[..., CPOTrainer], columns: int
) -> None:
    with at_a_terminal(columns) as terminal:
        run(TrainingDisplay(), Talk())
        shown = terminal.shown()
    lines = Screen(columns).feed(shown).lines()
    text = " ".join(lines)
    for step in (1, 2, 3, 4):
        assert text.count(f"logged in step {step}, to the end of the") == 1
        assert lines.count(f"printed in step {step}") == 1
    places = [text.index(f"printed in step {step}") for step in (1, 2, 3, 4)]
    assert places == sorted(places)
    bars = [line for line in lines if re.search("[━─]", line)]
    assert len(bars) == 1
    assert bars[0].startswith("4/4  ━━")
    assert re.search(r"━ 100%  .*in \d:\d\d$", bars[0])
    after = lines[lines.index(bars[0]) + 1 :]
    assert after[0].startswith("loss ")
    assert any(line.startswith("CW421 since step 4: chosen falls") for line in after)
    assert all(
        line.startswith(("loss", "accuracy", "margin", "chosen", "CW421")) or "/s" in line
        for line in after
        if line
    )
    assert len(re.findall("step 2/4  eval  loss", text)) == 1
    assert after[-1] == ""  # the next one to write begins a line
    assert not any("evaluating" in line for line in lines)


def test_a_terminal_is_handed_back_whatever_happens(run: Callable[..., CPOTrainer]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with at_a_terminal(80) as terminal:
        handlers = [h.stream for h in logger().handlers if isinstance(h, logging.StreamHandler)]
        with pytest.raises(KeyboardInterrupt):
            run(TrainingDisplay(), Talk(interrupted))
        assert sys.stdout is terminal.stream
        assert sys.stderr is terminal.stream
        after = [h.stream for h in logger().handlers if isinstance(h, logging.StreamHandler)]
        assert after == handlers
        sys.stderr.write("counterpoint: interrupted.\n")
        screen = Screen(80).feed(terminal.shown())
    assert not screen.cursor_hidden
    assert screen.lines()[-2] == "counterpoint: interrupted."
    assert sum("━" in line or "─" in line for line in screen.lines()) == 1


def test_no_crash_can_leave_the_cursor_hidden(run: Callable[..., CPOTrainer]) -> None:
    seen = []
    with at_a_terminal(80) as terminal:
        talk = Talk(lambda: seen.append(bytes(terminal._bytes).decode("utf-8", "ignore")))
        run(TrainingDisplay(), talk)
    assert "/4  " in seen[0]
    assert not Screen(80).feed(seen[0]).cursor_hidden


def test_a_window_that_is_made_narrower_is_noticed(run: Callable[..., CPOTrainer]) -> None:
    with at_a_terminal(100) as terminal:
        run(TrainingDisplay(), Talk(lambda: terminal.resize(30)))
        shown = terminal.shown()
    final = [line for line in Screen(100).feed(shown).lines() if line][-6:]
    assert max(map(len, final)) < 30


def test_an_evaluation_alone_shows_its_progress_and_leaves_its_numbers(
    run: Callable[..., CPOTrainer],
) -> None:
    with at_a_terminal(80) as terminal:
        display = TrainingDisplay()
        trainer = run(display)
        before = len(terminal._bytes)
        trainer.evaluate()
        shown = terminal.shown()[before // 2 :]
    assert "evaluating, batch 1 of 1" in shown
    lines = Screen(80).feed(shown).lines()
    assert not any("evaluating" in line for line in lines)
    assert sum("eval  loss" in line for line in lines) >= 1


@pytest.mark.parametrize("options", [{"disable_tqdm": True}, {}], ids=["asked for", "no terminal"])
def test_elsewhere_there_are_plain_lines(
    run: Callable[..., CPOTrainer], capfd: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    run(TrainingDisplay(), **options)
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if re.match(r"step \d", line)]
    trained = [line.split("  ")[0] for line in lines if "eval" not in line]
    assert trained == [f"step {step}/4" for step in (1, 2, 3, 4)]
    assert sum("eval  loss" in line for line in lines) == 2
    assert all(len(line) <= PLAIN_WIDTH for line in lines)
    assert "\x1b" not in shown.err
    assert "{" not in shown.out


def test_a_display_takes_the_place_of_transformers_own(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    def kinds(trainer: CPOTrainer) -> set[type]:
        return {type(callback) for callback in trainer.callback_handler.callbacks}

    _, trainer = train_watched(models(), chatml_tokenizer, random_pairs(2), tmp_path)
    assert PrinterCallback in kinds(trainer)
    trainer.add_callback(TrainingDisplay())
    assert not kinds(trainer) & {PrinterCallback, ProgressCallback}


def test_other_ranks_show_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    state = TrainerState(global_step=1, max_steps=2, is_world_process_zero=False)
    shown = TrainingDisplay()
    shown.on_log(None, state, None, logs=NUMBERS)
    assert capfd.readouterr().err == ""


VIEW = View(step=340, steps=2000, first_step=100, since=1000.0, numbers=NUMBERS)


@pytest.mark.parametrize("alarms", [0, 1, 5])
def test_no_line_of_the_panel_is_wider_than_it_may_be(alarms: int) -> None:
    known = {f"CW42{n}": replace(ALARM, code=f"CW42{n}") for n in range(alarms)}
    view = replace(VIEW, alarms=known, evaluated=3, to_evaluate=1000)
    for width in range(20, 140):
        lines = [line.plain for line in panel(view, width, 1240.0)]
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("CW42") for line in lines) == min(alarms, 3)


def test_the_panel_says_what_there_is_to_know() -> None:
    # 240 steps in 240 seconds, 1,660 to go
    assert [line.plain for line in panel(VIEW, 79, 1240.0)] == [
        "340/2,000  ━━━──────────────────  17%  12.3 pairs/s  4,321 tokens/s  27:40 left",
        "loss 0.6123  accuracy 71%  margin 0.0342  chosen -1,245",
    ]
    assert [line.plain for line in panel(VIEW, 39, 1240.0)] == [
        "340/2,000  ━──────────  17%  27:40 left",
        "loss 0.6123  accuracy 71%",
        "margin 0.0342  chosen -1,245",
        "12.3 pairs/s  4,321 tokens/s",
    ]


HELD = {
    "constraints/bc/value": 1.8123,
    "constraints/bc/bound": 1.8,
    "constraints/bc/multiplier": 0.6512,
    "constraints/length of answers/value": 120.0,
    "constraints/length of answers/bound": 150.0,
    "constraints/length of answers/multiplier": 0.0,
    "constraints/unseen/multiplier": 0.0,
}


def test_the_panel_has_a_line_for_each_constraint_that_was_measured() -> None:
    view = replace(VIEW, numbers=NUMBERS | HELD)
    lines = panel(view, 79, 1240.0)
    assert [line.plain for line in lines[2:]] == [
        "bc 1.812 > 1.800, multiplier 0.651",
        "length of answers 120.00 ≤ 150.00, multiplier 0",
    ]
    assert [str(line.style) for line in lines[2:]] == ["yellow", ""]
    assert all(line.plain.isascii() for line in panel(view, 60, 1240.0, ascii_only=True))


def test_a_plain_line_tells_of_constraints_as_far_as_there_is_room() -> None:
    line = plain_line(VIEW, NUMBERS | HELD, 1240.0)
    assert (
        line == "step 340/2,000  loss 0.6123  accuracy 71%  bc 1.812>1.800 mult 0.651  27:40 left"
    )
    safe = {f"constraints/a/{key}": 0.1 for key in ("value", "bound", "multiplier")}
    assert plain_line(VIEW, NUMBERS | safe | HELD, 1240.0) == line  # the violated one comes first


def test_an_evaluations_line_has_the_held_out_values_of_constraints() -> None:
    logs = {
        "eval_loss": 0.7,
        "eval_nll_loss": 1.75,
        "eval_constraints/the length/value": 120.0,
        "eval_constraints/the length/violation": -30.0,
        "eval_constraints/bc/value": 1.8123,
        "eval_constraints/bc/violation": 0.0123,
        "eval_runtime": 1.0,
    }
    told = "step 340/2,000  eval  loss 0.7000  bc 1.812>1.800  the length 120.00<=150.00"
    assert plain_line(VIEW, logs) == told


def test_a_terminal_without_unicode_gets_ascii() -> None:
    view = replace(VIEW, alarms={"CW421": ALARM})
    assert all(line.plain.isascii() for line in panel(view, 60, 1240.0, ascii_only=True))


def test_plain_lines_keep_the_time_left_and_lose_what_has_no_room() -> None:
    line = plain_line(VIEW, NUMBERS, 1240.0)
    told = "step 340/2,000  loss 0.6123  accuracy 71%  margin 0.0342  27:40 left"
    assert line == told
    assert len(line) <= PLAIN_WIDTH


def test_a_named_sets_line_has_its_name_and_numbers() -> None:
    logs = {
        "eval_hard_loss": 0.7,
        "eval_hard_rewards/accuracies": 0.625,
        "eval_hard_nll_loss": 2.0,
        "eval_hard_bleu": 31.25,
        "eval_hard_runtime": 1.0,
        "eval_hard_samples_per_second": 3.0,
        "epoch": 1.0,
    }
    assert (
        plain_line(VIEW, logs) == "step 340/2,000  eval_hard  loss 0.7000  accuracy 62%  bleu 31.25"
    )
