"""A step with constraints is done again whole: its multipliers, bounds, prices and second sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from counterpoint import Constraint, CPOConfig, CPOTrainer
from counterpoint.step.replay.file import Held, Replay, read_replay, write_replay
from counterpoint.step.replay.held import HeldSet
from counterpoint.step.replay.recompute import loss_again
from tests.reliability.trials import TORTURE
from tests.steps import random_pairs


def rejected_nll(logps: Any, batch: Any) -> Tensor:
    found: Tensor = -logps.rejected
    return found


KINDS: dict[str, Any] = {
    "bc": {"kind": "bc", "slack": -0.01, "rate": 50.0},
    "displacement": {"kind": "displacement", "bound": 0.0, "rate": 50.0, "start": 0.5},
    "absolute_preference": {"kind": "absolute_preference", "bound": 0.5, "margin": 1.0},
    "safety": {"kind": "safety", "bound": 0.1, "start": 0.7, "pairs": 4},
    "kl_drift": {"kind": "kl_drift", "bound": 0.0, "rate": 50.0, "start": 0.5},
    "length": {"kind": "length", "bound": 6.0, "start": 0.5},
    "custom": Constraint("custom", "own", bound=0.0, numerator=rejected_nll, start=0.5),
}


WRITES: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "generate_during_eval": True,
    "eval_samples": 2,
    "eval_sample_tokens": 12,
}


class Recorded(TrainerCallback):
    """Each step as a file would keep it, and what doing it again on its own weights comes to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[Tensor] = []
        self.again: list[Tensor] = []
        self.without: list[Tensor] = []
        self.replays: list[Replay] = []
        self.trainer: CPOTrainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Gradients are there, and the weights have not moved: the model is the step's own."""
        runner = self.trainer.runner
        gradients = {n: p.grad for n, p in self.trainer.model.named_parameters()}
        kept = runner.recorder.replay(state.global_step + 1, self.trainer.model)
        assert kept is not None
        path = self.folder / "step.safetensors"
        write_replay(kept, path)
        found = read_replay(path)
        own = {one.asked.name: one.asked for one in runner.constraints.all}
        head, policy = self.trainer._assembly().head, runner.constraints.policy
        with torch.random.fork_rng():
            for step, into in ((found, self.again), (replace(found, held=Held()), self.without)):
                held = HeldSet(step, own, policy)
                assert held.left_out == ()
                alone = HeldSet(step)  # a file holds no functions
                assert alone.left_out == tuple(n for n in own if n == "own" and step.held.all)
                loss = loss_again(step, self.trainer.model, head, device="cpu", held=held)
                into.append(loss.detach())
        for name, parameter in self.trainer.model.named_parameters():
            parameter.grad = gradients[name]
        self.replays.append(found)


PADDED = KINDS if TORTURE else ("bc", "safety", "kl_drift")
"""Kinds that the padded layout is tried with too: the others read what these read of a layout."""


@pytest.mark.parametrize(
    ("layout", "kind"), [*(("shared", kind) for kind in KINDS), *(("padded", k) for k in PADDED)]
)
def test_every_kind_is_replayed_to_the_same_loss_bit_for_bit(
    kind: str, layout: str, models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    recorded = Recorded(tmp_path)
    trainer = CPOTrainer(
        model=models("qwen2_tied").double(),
        args=CPOConfig(
            output_dir=str(tmp_path / "run"),
            constraints=[KINDS[kind]],
            layout=layout,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            max_micro_batch_tokens=90,
            max_steps=3,
            **(WRITES if kind == "length" else {}),
            save_strategy="no",
            logging_steps=1,
            learning_rate=1e-2,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=random_pairs(24),
        eval_dataset=random_pairs(4, seed=1) if kind == "length" else None,
        processing_class=chatml_tokenizer,
        callbacks=[recorded],
        constraint_datasets={"safety": random_pairs(11, seed=5)} if kind == "safety" else None,
    )
    recorded.trainer = trainer
    step = trainer.training_step
    trainer.training_step = lambda *facts: (
        recorded.losses.append(step(*facts))
        or (  # type: ignore[method-assign]
            recorded.losses[-1]
        )
    )
    trainer.train()
    losses = [loss for loss in recorded.losses if loss != 0]  # windows before a step's last
    assert [float(loss) for loss in recorded.again] == [float(loss) for loss in losses]
    assert all(len(kept.micro_batches) > 1 for kept in recorded.replays)
    (held,) = recorded.replays[-1].held.all
    assert held.multiplier > 0
    # the constraint has a part in it: without, the step is another
    last = recorded.without[-1]
    assert abs(float(last - losses[-1])) > 1e-6 * abs(float(last))
    second = {pair.of for batch in recorded.replays[-1].micro_batches for pair in batch}
    assert second == ({"", "safety"} if kind == "safety" else {""})
