"""What takes longer than two seconds says what it is and how far it is; all else is silent."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerState

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.console import phases
from counterpoint.console.display import TrainingDisplay
from counterpoint.console.panel import View, panel
from counterpoint.console.phases import Outlet, Phase, _Teller, clock, on_stderr, phase, shown_on
from counterpoint.data.sources import load
from counterpoint.doctor import examine
from counterpoint.log import logger
from counterpoint.models.loading import load_model, load_tokenizer
from counterpoint.quickstart.translate import load_base, translate
from tests.steps import random_pairs, train_watched
from tests.terminal import Screen, Terminal

LONG_ENOUGH = 0.05


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Lines of a log that phases are told of in."""
    told: list[str] = []
    with shown_on(Outlet(None, told.append)):
        yield told


def waits_for(condition: Any) -> None:
    """Sleep until something is so, at most ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def of_a_minute(one: Phase, outlet: Outlet, seconds: int) -> Iterator[int]:
    """The seconds of a phase at which something is told, on a clock that does not wait."""
    teller = _Teller()
    teller._open = [(one, outlet)]
    with pytest.MonkeyPatch.context() as patch:
        for second in range(seconds):
            patch.setattr(
                "counterpoint.console.phases.time.monotonic", lambda at=second: one.since + at
            )
            before = one.due
            wait = teller._told()
            assert wait > 0
            if outlet.draw is None and one.due != before:
                yield second


def test_a_log_hears_of_it_after_two_seconds_and_then_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phases, "AFTER", 2.0)
    told: list[str] = []
    one = Phase("writing samples", 16, "prompts", since=0.0)
    one.done = 4
    assert list(of_a_minute(one, Outlet(None, told.append), 600)) == [2, 6, 18, 54, 162, 486]
    assert told[:2] == [
        "writing samples, 4 of 16 prompts, 0:02, about 0:06 left",
        "writing samples, 4 of 16 prompts, 0:06, about 0:18 left",
    ]


def test_what_is_shorter_is_silent(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "AFTER", 60.0)
    with phase("reading"):
        pass
    assert lines == []


def test_a_phase_that_is_one_call_is_told_of_while_it_lasts(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "AFTER", LONG_ENOUGH)
    with phase("saving checkpoint-500"):
        waits_for(lambda: lines)
        assert lines[0] == "saving checkpoint-500, 0:00"
    assert lines[-1] == "saving checkpoint-500: done in 0:00"


def test_the_innermost_phase_is_told_of_and_one_that_fails_is_closed(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "AFTER", LONG_ENOUGH)

    def broken() -> None:
        with phase("outside"), phase("inside"):
            waits_for(lambda: lines)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert lines[0].startswith("inside, ")
    assert not phases._teller._open
    waits_for(lambda: phases._teller._thread is None)
    assert phases._teller._thread is None  # and no thread is left


@pytest.mark.parametrize(
    ("total", "unit", "done", "text"),
    [
        (None, "", 0, "reading, 1:05"),
        (None, "rows", 0, "reading, 1:05"),
        (None, "rows", 12000, "reading, 12,000 rows, 1:05"),
        (20000, "rows", 0, "reading, 0 of 20,000 rows, 1:05"),
        (20000, "rows", 10000, "reading, 10,000 of 20,000 rows, 1:05, about 1:05 left"),
        (20000, "rows", 20000, "reading, 20,000 of 20,000 rows, 1:05"),
        (400, "", 200, "reading, 200/400, 1:05, about 1:05 left"),
    ],
)
def test_it_says_how_far_it_is(total: int | None, unit: str, done: int, text: str) -> None:
    one = Phase("reading", total, unit, since=0.0)
    one.advance(done)
    assert one.text(65.0) == text


def test_a_name_shows_no_secret_and_sends_no_control_character(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-for-your-eyes")
    assert Phase("reading \x1b[2Jnot-for-your-eyes.jsonl").name == "reading \\u001b[2J***.jsonl"


def test_a_clock_reads_as_a_clock() -> None:
    assert [clock(s) for s in (0, 7, 59.6, 754, 3600)] == [
        "0:00",
        "0:07",
        "1:00",
        "12:34",
        "1:00:00",
    ]


@pytest.mark.parametrize("columns", [30, 80])
def test_a_terminal_has_one_line_which_makes_room_and_is_wiped(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "AFTER", LONG_ENOUGH)
    monkeypatch.setenv("TERM", "xterm")
    with Terminal(columns) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        handler = logging.StreamHandler()
        logger().addHandler(handler)
        drawn: list[str] = []
        real = phases._Line.__call__
        patch.setattr(
            phases._Line, "__call__", lambda line, text: (real(line, text), drawn.append(text))[0]
        )
        try:
            with phase("载入权重 loading the weights of a model with a name", 7, "files"):
                waits_for(lambda: drawn)
                logger().info("a word")
                count = len(drawn)
                waits_for(lambda: len(drawn) > count)
        finally:
            logger().removeHandler(handler)
        shown = terminal.shown()
    assert "载入权重 loading" in shown
    screen = Screen(columns).feed(shown)
    assert [line for line in screen.lines() if line] == ["a word"]
    assert max(len(part) for part in shown.replace("\n", "\r").split("\r")) < columns


def test_where_no_bar_is_wanted_a_terminal_gets_lines() -> None:
    with Terminal(80) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        patch.setenv("TERM", "xterm")
        assert on_stderr(print).draw is not None
        phases.allow_bars(False)
        try:
            assert on_stderr(print).draw is None
        finally:
            phases.allow_bars(True)
        patch.setenv("TERM", "dumb")
        assert on_stderr(print).draw is None
    assert on_stderr(print).draw is None  # no terminal


def test_who_hears_no_information_hears_of_no_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "AFTER", 0.0)
    monkeypatch.setattr(logger(), "level", logging.WARNING)  # as of ranks other than the first
    logger()._cache.clear()  # type: ignore[attr-defined]
    with phase("saving"):
        assert phases._teller._open == []
    logger()._cache.clear()  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked there")
def test_a_forked_process_has_no_phase_of_its_parent(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "AFTER", 0.0)
    monkeypatch.setattr(phases, "SELDOM", 1)  # it writes all the time
    with phase("writing"):
        waits_for(lambda: lines)
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                child = os.fork()
            if child == 0:
                with phase("in the child"):
                    os._exit(len(phases._teller._open))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 1)
    assert not any("child" in line for line in lines)


def test_a_panel_shows_the_phase_in_place_of_an_evaluations_batches() -> None:
    view = View(evaluated=3, to_evaluate=10)
    assert [line.plain for line in panel(view, 79, 0.0)] == ["evaluating, batch 3 of 10"]
    view.phase = "evaluating, 3 of 10 batches, 0:12, about 0:28 left"
    assert [line.plain for line in panel(view, 79, 0.0)] == [view.phase]


def test_while_a_panel_is_open_phases_are_part_of_it() -> None:
    state = TrainerState(global_step=0, max_steps=4, is_world_process_zero=True)
    args = type("Args", (), {"disable_tqdm": False})()
    with Terminal(80) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        patch.setattr(phases, "AFTER", LONG_ENOUGH)
        patch.setenv("TERM", "xterm-256color")
        display = TrainingDisplay()
        display.on_train_begin(args, state, None)
        with phase("saving checkpoint-1"):
            waits_for(lambda: display._view.phase)
            assert display._view.phase == "saving checkpoint-1, 0:00"
        assert display._view.phase == ""
        display.close()
        shown = terminal.shown()
    lines = Screen(80).feed(shown).lines()
    assert "saving checkpoint-1" in shown
    assert not any("saving" in line for line in lines)
    assert phases._teller.outlets == []


# every phase of a run


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> list[Phase]:
    """The phases that were entered, however short."""
    found: list[Phase] = []
    real = _Teller.enter

    def enter(teller: _Teller, one: Phase, outlet: Outlet) -> None:
        found.append(one)
        real(teller, one, outlet)

    monkeypatch.setattr(_Teller, "enter", enter)
    return found


ROWS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(6)]


def test_every_phase_of_a_run_has_a_name(
    entered: list[Phase], models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    made, data = tmp_path / "model", tmp_path / "pairs.jsonl"
    models().save_pretrained(made)
    chatml_tokenizer.save_pretrained(made)
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    args = CPOConfig(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=2,
        max_steps=1,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        generate_during_eval=True,
        eval_sample_tokens=3,
        constraints=[{"kind": "bc", "bound": 9.0}],
        gradient_checkpointing=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = load(data)
    tokenizer = load_tokenizer(str(made), args)
    model = load_model(str(made), args)
    examine(args, model=model, tokenizer=tokenizer, train_dataset=rows)
    trainer = CPOTrainer(
        model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()
    trainer.train(resume_from_checkpoint="latest")
    counted = {one.name: (one.done, one.total, one.unit) for one in entered}
    assert counted.keys() >= {
        f"reading {data}",
        f"loading the tokenizer of {made}",
        f"loading the weights of {made}",
        "examining the rows of train",
        "examining the model",
        "examining what a step needs in memory",
        "preparing the rows of train",
        "planning micro-batches that fit in memory",
        "trying to save everything but the weights",
        "measuring the constraints",
        "proving head and layout on the first pairs",
        "writing to 6 prompts",
        "evaluating",
        "taking the fingerprint of model and data",
        "saving checkpoint-1",
        "loading the best model, checkpoint-1",
        "saving the model",
        "verifying the checkpoint to resume from",
    }
    # who counts comes to the end
    assert counted["examining the rows of train"] == (6, 6, "rows")
    assert counted["preparing the rows of train"] == (6, 6, "rows")
    assert counted["measuring the constraints"] == (6, 6, "pairs")
    assert counted["evaluating"] == (1, 1, "batches")
    assert counted["writing to 6 prompts"] == (3, 3, "tokens at most")
    assert counted[f"reading {data}"] == (6, None, "rows")


def test_a_bar_of_transformers_that_counts_batches_is_left_alone(
    entered: list[Phase], models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    _, trainer = train_watched(models(), chatml_tokenizer, random_pairs(2), tmp_path)
    for own, phases_of_it in ((PrinterCallback, 1), (ProgressCallback, 0)):
        entered.clear()
        trainer.callback_handler.callbacks = [own()]
        trainer.evaluate(random_pairs(2))
        assert [one.name for one in entered].count("evaluating") == phases_of_it


def test_a_quickstart_counts_its_translations(entered: list[Phase]) -> None:
    model, tokenizer = load_base()
    translate(model, tokenizer, [7, 8, 9])
    assert [(one.name, one.done, one.total) for one in entered] == [("translating numbers", 3, 3)]


def test_a_line_of_the_log_without_numbers_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    state = TrainerState(global_step=0, max_steps=10, is_world_process_zero=True)
    TrainingDisplay().on_log(None, state, None, logs={"eval_samples/empty": 0.0})
    assert capsys.readouterr().err == ""
