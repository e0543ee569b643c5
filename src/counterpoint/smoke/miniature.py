"""The run in miniature: the real trainer, the run's own options, the tiny twin, a few pairs.

What a miniature cannot take over from the run, it replaces:

1. Steps are few and small; the split into micro-batches keeps its kind.
2. The learning rate is ``LEARNING_RATE``, constant: a twin starts from random weights, which the
   run's own would hardly move in so few steps.
3. Nothing is evaluated, reported, compiled or pushed.

Not here: what is made of it (``checks``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from counterpoint.config import CPOConfig
from counterpoint.forward.alone import logits_alone
from counterpoint.forward.seeing import PARTS_THAT_SEE, weights_that_see
from counterpoint.forward.sights import sight_of
from counterpoint.objectives import INITIAL, LOSSES
from counterpoint.records import TokenPair
from counterpoint.smoke.real import NOTHING_KEPT
from counterpoint.smoke.rows import prepared
from counterpoint.trainer.trainer import CPOTrainer

LEARNING_RATE = 3e-3

STEP_PAIRS = 8
"""Pairs of a miniature's step, where there are as many."""

PASSES, LEAST_STEPS = 3, 6
"""Times that a miniature goes over its pairs, at least; and its least number of steps."""

Weights = dict[str, Tensor]

_REPLACED: dict[str, Any] = {
    **NOTHING_KEPT,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "max_steps": -1,
    "save_total_limit": None,
    "dataloader_drop_last": False,
    "pairs_per_step": None,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    # a twin has no model beside it that was trained on its kind of text
    "reference": INITIAL,
    # a twin's weights are random: there are none that a quantiser could keep
    "load_in_4bit": False,
    "load_in_8bit": False,
    # one process has nothing to share
    "fsdp": None,
    "fsdp_config": None,
    "fsdp_replicas": None,
    "optimizer_offload": False,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training in miniature came to.

    Args:
        folder: where its model and its checkpoints are.
        model: as trained, unwrapped.
        steps: optimizer steps that were done, those before a checkpoint not among them.
        skipped: of these, steps that were not applied.
        losses: by number of the step; those before a checkpoint come from it.
        objective: of all pairs as one set, before the first step and after the last one; empty
            where it was not asked for.
        before: every tensor before the first step.
        after: every tensor after the last one.
        frozen: names of the tensors that do not train.
        idle: names of those of a tower that the model makes no use of, or no pair: it may read an
            earlier layer than its last one, and rows may show no pictures.
    """

    folder: Path
    model: Any
    steps: int
    skipped: int
    losses: dict[int, float]
    objective: tuple[float, ...]
    before: Weights
    after: Weights
    frozen: frozenset[str]
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Miniature:
    """All that a run needs, small.

    Args:
        args: the run's options.
        model: the twin, not adapted; copied before it is trained.
        tokenizer: of the run.
        peft_config: of the run's adapter, or None.
        pairs: short ones, at least one.
        folder: where anything may be written.
    """

    args: CPOConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: Any
    pairs: Sequence[TokenPair]
    folder: Path

    @property
    def step_pairs(self) -> int:
        """Pairs of a step."""
        return min(STEP_PAIRS, len(self.pairs))

    @property
    def steps_a_pass(self) -> int:
        """Steps that go over all pairs once."""
        return -(-len(self.pairs) // self.step_pairs)

    @property
    def passes(self) -> int:
        """Times over all pairs."""
        return max(PASSES, -(-LEAST_STEPS // self.steps_a_pass))

    @property
    def steps(self) -> int:
        """Steps of a whole training."""
        return self.passes * self.steps_a_pass

    @property
    def half(self) -> int:
        """The step after which a training leaves a checkpoint."""
        return self.steps // 2

    def split(self) -> dict[str, int]:
        """A step's micro-batches, cut as the run cuts them, as far as there are pairs."""
        own = self.args.per_device_train_batch_size
        if self.args.gradient_accumulation_steps == 1:
            micro = self.step_pairs
        else:
            micro = min(own, max(1, self.step_pairs // 2))
        return {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": -(-self.step_pairs // micro),
        }

    def train(
        self, name: str, *, judged: bool = False, resume: Path | None = None, **changes: Any
    ) -> Trained:
        """Train a copy of the twin on all pairs, with a checkpoint half-way, and save it.

        Args:
            name: of its folder.
            judged: find the objective of all pairs as one set, before and after.
            resume: a checkpoint to resume from.
            changes: of the options.
        """
        saving = {"save_strategy": "steps", "save_steps": self.half}
        changes = {"num_train_epochs": self.passes, **saving, **self.split(), **changes}
        steps = _StepCounter()
        model = copy.deepcopy(self.model)
        trainer = self._trainer(self.folder / name, self.pairs, model, steps, changes)
        before = copied_weights(trainer.model)
        objective = [_objective(trainer)] if judged else []
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        trainer.save_model()
        objective += [_objective(trainer)] if judged else []
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        return Trained(
            folder=self.folder / name,
            model=trained,
            steps=steps.done,
            skipped=int(max((line.get("skipped_steps", 0) for line in lines), default=0)),
            losses={line["step"]: line["loss"] for line in lines},
            objective=tuple(objective),
            before=before,
            after=copied_weights(trained),
            frozen=frozenset(n for n, p in trained.named_parameters() if not p.requires_grad),
            idle=_idle(trained, self.pairs),
        )

    def gradient(self, **changes: Any) -> Weights:
        """The gradient of one step of the first pairs, in float32, unclipped, without dropout.

        Args:
            changes: of the options.
        """
        own: dict[str, Any] = {
            "num_train_epochs": 1,
            "max_grad_norm": 0.0,
            "max_micro_batch_tokens": None,
            "disable_dropout": True,
            "stochastic_rounding": False,
            "bf16": False,
            "fp16": False,
            **self.split(),
            **changes,
        }
        pairs = self.pairs[: self.step_pairs]
        camera = _GradientCamera()
        model = copy.deepcopy(self.model).float()
        self._trainer(self.folder / "gradient", pairs, model, camera, own).train()
        return camera.picture

    def _trainer(
        self,
        folder: Path,
        pairs: Sequence[TokenPair],
        model: PreTrainedModel,
        callback: TrainerCallback,
        changes: dict[str, Any],
    ) -> CPOTrainer:
        trainer = CPOTrainer(
            model=model,
            args=replace(
                self.args, **{**_REPLACED, **self._gentle(), "output_dir": str(folder), **changes}
            ),
            train_dataset=prepared(pairs),
            processing_class=self.tokenizer,
            peft_config=copy.deepcopy(self.peft_config),
            callbacks=[callback],
        )
        trainer.examined = True  # its options are not those that were given
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _gentle(self) -> dict[str, float]:
        """At a twin's rate a weight as published would punish every step that moves at all."""
        if not LOSSES[self.args.loss_type].reads("dpop_lambda"):
            return {}
        return {"dpop_lambda": min(self.args.dpop_lambda, 1.0)}


def _objective(trainer: CPOTrainer) -> float:
    """The objective of the training pairs as one set; unlike a step's, without dropout."""
    return float(trainer.evaluate(trainer.train_dataset)["eval_loss"])


def _idle(trained: nn.Module, pairs: Sequence[TokenPair]) -> frozenset[str]:
    """Names of the tensors of a tower that no gradient reaches in a call of the model's own."""
    if sight_of(trained.config) is None:
        return frozenset()
    model = copy.deepcopy(trained).float().eval()
    model.zero_grad()
    shown = next((pair for pair in pairs if pair.seen), None)
    if shown is not None:
        logits_alone(model, shown, shown.chosen)[0].sum().backward()  # type: ignore[no-untyped-call]
    tower = {id(weight) for part in PARTS_THAT_SEE for weight in weights_that_see(model, part)}
    return frozenset(
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.grad is None and id(weight) in tower
    )


def copied_weights(model: Any) -> Weights:
    """A copy of every parameter by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def distance(one: Weights, other: Weights) -> float:
    """Norm of the difference of two sets of tensors over the norm of the first."""
    difference = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    size = sum(float(one[n].double().square().sum()) for n in one)
    return float(torch.tensor(difference / size).sqrt()) if size else float(difference > 0)


class _StepCounter(TrainerCallback):
    """Counts the steps that are done."""

    def __init__(self) -> None:
        self.done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1


class _GradientCamera(TrainerCallback):
    """Keeps the gradient of the last step, as it is just before the weights move."""

    def __init__(self) -> None:
        self.picture: Weights = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = {n: p.grad for n, p in kwargs["model"].named_parameters() if p.grad is not None}
        self.picture = {name: grad.detach().cpu().clone() for name, grad in trained.items()}
