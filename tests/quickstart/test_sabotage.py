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
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.quickstart.run import STEP_PAIRS, training_options
from counterpoint.quickstart.task import Pair, preference_pairs
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import Run, read_run

Rows = list[dict[str, str]]

SHORT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
"""A schedule at its full rate from the first step: a few of them must show what is wrong."""

HELD_OUT = 200


@dataclass(frozen=True)
class Spoiled:
    """A run of the quickstart, spoiled.

    Args:
        code: of the alarm that must sound.
        steps: of the run.
        options: that are other than the quickstart's.
        model: what is done to the base model.
        pairs: what is done to the training pairs.
        adapter: trained in place of all weights.
        callback: takes part in the run.
    """

    code: str
    steps: int
    options: dict[str, Any]
    model: Callable[[Any], Any] = lambda model: model
    pairs: Callable[[list[Pair]], list[Pair]] = lambda pairs: pairs
    adapter: Any = None
    callback: type[TrainerCallback] = TrainerCallback


def rows_of(pairs: Sequence[Pair]) -> Rows:
    return [pair.row for pair in pairs]


def train(folder: Path, spoiled: Spoiled) -> Run:
    """The run on the quickstart's base, task and options, evaluated at its start and its end."""
    model, tokenizer = load_base()
    steps = spoiled.steps
    options = {
        **training_options(folder, seed=0, steps=steps),
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": steps,
        "eval_on_start": True,
        **spoiled.options,
    }
    args = CPOConfig(**options)
    CPOTrainer(
        spoiled.model(model),
        args,
        train_dataset=rows_of(spoiled.pairs(preference_pairs(steps * STEP_PAIRS, seed=0))),
        eval_dataset=rows_of(preference_pairs(HELD_OUT, seed=1)),
        processing_class=tokenizer,
        peft_config=spoiled.adapter,
        callbacks=[spoiled.callback()],
    ).train()
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


HEALTHY = Spoiled("", 120, {})

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
    "alpha 0": Spoiled("CW421", 120, {"cpo_alpha": 0.0}),
    "chosen and rejected swapped": Spoiled("CW427", 40, {}, pairs=swapped),
    "frozen layer edited in place": Spoiled(
        "CW415", 6, SHORT, model=with_frozen_layer, callback=EditsTheFrozenLayer
    ),
}


def test_the_healthy_run_raises_no_alarm(tmp_path: Path) -> None:
    run = train(tmp_path, HEALTHY)
    assert run.alarms == ()
    assert run.metrics[-1]["step"] == HEALTHY.steps


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_raises_its_alarm(name: str, tmp_path: Path) -> None:
    spoiled = SABOTAGES[name]
    alarms = train(tmp_path, spoiled).alarms
    assert spoiled.code in {alarm["code"] for alarm in alarms}
    assert all(1 <= alarm["since"] <= alarm["step"] <= spoiled.steps for alarm in alarms)
