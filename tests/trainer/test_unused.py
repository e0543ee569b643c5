"""A script hears of options that can do nothing in its run, once and before the first step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from tests.models_on_the_spot import make_model
from tests.reliability.scenarios import tokenizer
from tests.steps import random_pairs


class Begun(TrainerCallback):
    """Says when the first step begins."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logging.getLogger("counterpoint").info("a step begins")


def heard(
    folder: Path, caplog: pytest.LogCaptureFixture, *, handed: bool = False, **options: Any
) -> list[str]:
    """What a run of one step says of its options, and when its step began."""
    model = make_model("qwen2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    args = CPOConfig(
        output_dir=str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, **options
    )
    trainer = CPOTrainer(
        model,
        args,
        train_dataset=random_pairs(2),
        processing_class=tokenizer(),
        optimizers=(optimizer, schedule) if handed else (None, None),
        callbacks=[Begun()],
    )
    with caplog.at_level(logging.INFO, "counterpoint"):
        trainer.train()
    words = ("CW109", "a step begins")
    return [text for r in caplog.records if (text := r.getMessage()).startswith(words)]


def test_one_line_names_all_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {
        "generate_during_eval": True,
        "on_alarm": "stop",
        "logging_strategy": "no",
        "monitor_steps": 0,
        "lr_scheduler_type": "constant_with_warmup",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "resume_anyway": True,
    }
    line, begins = heard(tmp_path, caplog, **options)
    assert begins == "a step begins"
    assert line.startswith("CW109 4 options do nothing in this run: generate_during_eval=True (th")
    for words in ("on_alarm='stop' (nothing that could", "lr_scheduler_kwargs={'num_cycles': 2} ("):
        assert words in line
    assert "resume_anyway=True (nothing is resumed)" in line


def test_what_was_handed_over_makes_options_idle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, _ = heard(tmp_path, caplog, handed=True, learning_rate=0.5, warmup_steps=3)
    assert "2 options do" in line
    assert "learning_rate=0.5 (the trainer was given an optimizer)" in line
    assert "warmup_steps=3 (the trainer was given a schedule)" in line


def test_nothing_is_said_where_all_of_them_do_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert heard(tmp_path, caplog, on_alarm="stop", warmup_steps=1) == ["a step begins"]


def test_what_the_doctor_has_said_is_not_said_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = CPOConfig(output_dir=str(tmp_path), use_cpu=True, eval_delay=2, resume_anyway=True)
    rows = random_pairs(2)
    trainer = CPOTrainer(make_model("qwen2"), args, None, rows, processing_class=tokenizer())
    trainer.examined = True
    with caplog.at_level(logging.WARNING, "counterpoint"):
        trainer._say_unused(resumes=False)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "counterpoint"]
    assert (
        line == "CW109 an option does nothing in this run: resume_anyway=True (nothing is resumed)."
    )
