"""Each way to spoil the quickstart's run raises its alarm, and the healthy run raises none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer, TrainingError
from counterpoint.quickstart.run import RUN_FOLDER, STEP_PAIRS, STEPS, training_options
from counterpoint.quickstart.task import Pair, preference_pairs
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import Run, read_run
from tests.reliability.trials import TORTURE

Rows = list[dict[str, str]]

TRL = {"beta": 0.1, "cpo_alpha": 1.0}
"""TRL's defaults. With so small a beta no pair is won for long, and nothing but the NLL term ends
the fall of the chosen; at the quickstart's beta the loss itself does, and alpha 0 does no harm."""

SHORT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
"""A schedule at its full rate from the first step: a few of them must show what is wrong."""

HELD_OUT = 200
"""Pairs with the right labels to evaluate on, where that is what tells."""


@dataclass(frozen=True)
class Spoiled:
    """A run of the quickstart, spoiled.

    Args:
        code: of the alarm that must sound.
        steps: of the run.
        options: that are other than the quickstart's.
        model: what is done to the base model.
        pairs: what is done to the training pairs.
        evaluates: whether the run is evaluated, at its start and its end.
        adapter: trained in place of all weights.
        callback: takes part in the run.
    """

    code: str
    steps: int
    options: dict[str, Any]
    model: Callable[[Any], Any] = lambda model: model
    pairs: Callable[[list[Pair]], list[Pair]] = lambda pairs: pairs
    evaluates: bool = False
    adapter: Any = None
    callback: type[TrainerCallback] = TrainerCallback


def rows_of(pairs: Sequence[Pair]) -> Rows:
    return [pair.row for pair in pairs]


def train(folder: Path, run: Spoiled) -> Run:
    """A run on the quickstart's base, task and options, with a log line a step."""
    model, tokenizer = load_base()
    options = {
        **training_options(folder, seed=0, steps=run.steps),
        "logging_steps": 1,
        "eval_strategy": "steps" if run.evaluates else "no",
        "eval_steps": run.steps,
        "eval_on_start": run.evaluates,
        **run.options,
    }
    args = CPOConfig(**options)
    trainer = CPOTrainer(
        run.model(model),
        args,
        train_dataset=rows_of(run.pairs(preference_pairs(run.steps * STEP_PAIRS, seed=0))),
        eval_dataset=rows_of(preference_pairs(HELD_OUT, seed=1)) if run.evaluates else None,
        processing_class=tokenizer,
        peft_config=run.adapter,
        callbacks=[run.callback()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return read_run(args.output_dir)


def without_trunk(model: Any) -> Any:
    """The head no longer passes a gradient on."""
    model.model.norm.register_forward_hook(lambda module, inputs, output: output.detach())
    return model


def with_idle_layer(model: Any) -> Any:
    """A layer that no text passes through."""
    model.model.idle = nn.Linear(8, 8)
    return model


def with_frozen_layer(model: Any) -> Any:
    model.model.layers[0].requires_grad_(False)
    return model


class EditsTheFrozenLayer(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                kwargs["model"].model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3


def swapped(pairs: list[Pair]) -> list[Pair]:
    return [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]


HEALTHY = {
    "quickstart": Spoiled("", STEPS, {}, evaluates=True),
    "TRL's defaults": Spoiled("", 36, {**SHORT, **TRL}),
}

SABOTAGES: dict[str, Spoiled] = {
    "learning rate 0": Spoiled("CW411", 12, {**SHORT, "learning_rate": 0.0}),
    "learning rate 1e-9, bf16 weights": Spoiled(
        "CW414", 12, {**SHORT, "learning_rate": 1e-9}, model=lambda m: m.to(torch.bfloat16)
    ),
    "detached head": Spoiled("CW413", 12, SHORT, model=without_trunk),
    "LoRA on a module without gradient": Spoiled(
        "CW412",
        12,
        SHORT,
        model=with_idle_layer,
        adapter=peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "idle"]),
    ),
    "alpha 0": Spoiled("CW421", 36, {**SHORT, **TRL, "cpo_alpha": 0.0}),
    "chosen and rejected swapped": Spoiled("CW427", 12, {}, pairs=swapped, evaluates=True),
    "frozen layer edited in place": Spoiled(
        "CW415", 6, SHORT, model=with_frozen_layer, callback=EditsTheFrozenLayer
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY if TORTURE else list(HEALTHY)[1:])
def test_a_healthy_run_raises_no_alarm(name: str, tmp_path: Path) -> None:
    run = train(tmp_path, HEALTHY[name])
    assert run.alarms == ()
    assert run.metrics[-1]["step"] == HEALTHY[name].steps


def test_a_run_that_an_alarm_may_stop_ends_before_the_damage_is_done(tmp_path: Path) -> None:
    """The margin rises all along; it is the chosen completions that are lost."""
    run = SABOTAGES["alpha 0"]
    stopping = replace(run, steps=4 * run.steps, options={**run.options, "on_alarm": "stop"})
    with pytest.raises(TrainingError, match=r"^CP402 stopped after step \d+ by CW421, "):
        train(tmp_path, stopping)
    (alarm,) = read_run(tmp_path / RUN_FOLDER).alarms
    assert alarm["step"] <= run.steps
    assert (tmp_path / RUN_FOLDER / f"checkpoint-{alarm['step']}").is_dir()


@pytest.mark.parametrize("name", [name for name in SABOTAGES if name != "alpha 0"])
def test_a_sabotage_raises_its_alarm(name: str, tmp_path: Path) -> None:
    spoiled = SABOTAGES[name]
    alarms = train(tmp_path, spoiled).alarms
    assert spoiled.code in {alarm["code"] for alarm in alarms}
    assert all(0 <= alarm["since"] <= alarm["step"] <= spoiled.steps for alarm in alarms)
