"""What an alarm does to a run: said, written down, and with on_alarm="stop" the end of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from counterpoint import CounterpointError, CPOConfig, CPOTrainer, TrainingError
from counterpoint.runlog import Alarm, read_run
from tests.steps import random_pairs

STEPS = 8


def trainer(
    models: Any, tokenizer: Any, folder: Path, callback: TrainerCallback | None = None, **more: Any
) -> CPOTrainer:
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        **more,
    }
    return CPOTrainer(
        model=models("qwen2"),
        args=CPOConfig(output_dir=str(folder), **options),
        train_dataset=random_pairs(4 * STEPS),
        eval_dataset=random_pairs(4, seed=1),
        processing_class=tokenizer,
        callbacks=[callback] if callback else None,
    )


class Sounds(TrainerCallback):
    """Sounds an alarm once a run, at some event of a step."""

    def __init__(self, event: str, step: int = 3, code: str = "CW421") -> None:
        self.trainer: CPOTrainer | None = None
        self._step, self._code, self._done = step, code, False
        setattr(self, event, self._sound)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done = False

    def _sound(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step and not self._done:
            self._done = True
            self.trainer.raise_alarm(Alarm(self._code, self._step, 1, "seen.", "beta: 1"))


def with_alarm(
    models: Any, tokenizer: Any, folder: Path, *, event: str = "on_step_end", **more: Any
) -> CPOTrainer:
    callback = Sounds(event)
    made = trainer(models, tokenizer, folder, callback, **more)
    callback.trainer = made
    return made


def test_an_alarm_is_said_and_written_and_the_run_goes_on(
    models, chatml_tokenizer, tmp_path: Path, caplog
):
    run = with_alarm(models, chatml_tokenizer, tmp_path)
    with caplog.at_level(logging.WARNING, logger="counterpoint"):
        run.train()
    assert run.state.global_step == STEPS
    assert "step 3: CW421 seen. Try: beta: 1" in caplog.text
    (written,) = read_run(tmp_path).alarms
    assert {**written, "time": 0} == {
        "code": "CW421",
        "step": 3,
        "since": 1,
        "seen": "seen.",
        "fix": "beta: 1",
        "time": 0,
    }
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("event", ["on_step_end", "on_log", "on_evaluate"])
def test_a_stopped_run_ends_with_its_step_a_checkpoint_and_the_alarms_name(
    models, chatml_tokenizer, tmp_path: Path, event: str
):
    run = with_alarm(
        models,
        chatml_tokenizer,
        tmp_path,
        event=event,
        on_alarm="stop",
        eval_strategy="steps",
        eval_steps=3,
    )
    with pytest.raises(TrainingError, match=r"^CP402 stopped after step 3 by CW421, ") as caught:
        run.train()
    assert isinstance(caught.value, CounterpointError)
    assert run.state.global_step == 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert str(tmp_path / "checkpoint-3") in str(caught.value)
    assert len(read_run(tmp_path).alarms) == 1


def test_an_alarm_after_the_last_step_has_nothing_left_to_stop(
    models, chatml_tokenizer, tmp_path: Path
):
    callback = Sounds("on_train_end", step=STEPS)
    run = trainer(models, chatml_tokenizer, tmp_path, callback, on_alarm="stop")
    callback.trainer = run
    assert run.train().global_step == STEPS
    assert [alarm["code"] for alarm in read_run(tmp_path).alarms] == ["CW421"]


def test_a_step_that_is_saved_anyway_is_saved_once(
    models, chatml_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = with_alarm(
        models, chatml_tokenizer, tmp_path, on_alarm="stop", save_strategy="steps", save_steps=1
    )
    saved: list[int] = []
    whole = CPOTrainer._save_checkpoint

    def counted(self: CPOTrainer, *args: Any, **kwargs: Any) -> None:
        saved.append(self.state.global_step)
        whole(self, *args, **kwargs)

    monkeypatch.setattr(CPOTrainer, "_save_checkpoint", counted)
    with pytest.raises(TrainingError):
        run.train()
    assert saved == [1, 2, 3]


def test_a_stopped_run_is_saved_too_where_only_the_best_step_would_be(
    models, chatml_tokenizer, tmp_path: Path
):
    """transformers decides that after the evaluation, whatever was asked for before."""
    run = with_alarm(
        models,
        chatml_tokenizer,
        tmp_path,
        on_alarm="stop",
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="eval_nll_loss",
        greater_is_better=False,
        learning_rate=0.0,  # no step is better than the first
    )
    with pytest.raises(TrainingError):
        run.train()
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_stopped_run_goes_on_from_its_checkpoint_to_the_same_end(
    models, chatml_tokenizer, tmp_path: Path
):
    whole = trainer(models, chatml_tokenizer, tmp_path / "whole", learning_rate=1e-3)
    whole.train()
    run = with_alarm(
        models, chatml_tokenizer, tmp_path / "cut", on_alarm="stop", learning_rate=1e-3
    )
    with pytest.raises(TrainingError):
        run.train()
    resumed = trainer(models, chatml_tokenizer, tmp_path / "cut", learning_rate=1e-3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    ends = [
        [line["loss"] for line in one.state.log_history if "loss" in line]
        for one in (whole, resumed)
    ]
    assert ends[0] == ends[1]
    assert len(ends[0]) == STEPS


def test_a_trainer_that_was_stopped_trains_again(models, chatml_tokenizer, tmp_path: Path):
    run = with_alarm(models, chatml_tokenizer, tmp_path, on_alarm="stop")
    for _ in range(2):
        with pytest.raises(TrainingError, match="stopped after step 3"):
            run.train()


def test_an_evaluation_outside_of_training_sounds_nothing(
    models, chatml_tokenizer, tmp_path: Path, caplog
):
    run = trainer(models, chatml_tokenizer, tmp_path)
    run.evaluate()
    run.model.lm_head.weight.data *= 50  # its likelihoods are now gone
    with caplog.at_level(logging.WARNING, logger="counterpoint"):
        run.evaluate()
    assert "CW4" not in caplog.text
