"""What a step must hear of the training loop, told by transformers' events."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from counterpoint.models.checkpointing import keep_share
from counterpoint.step.runner import StepRunner


class StepEvents(TrainerCallback):
    """Tells the step when a training begins, and when the optimizer has moved the weights.

    Args:
        step: of the run.
        was_skipped: whether the optimizer left out its last step, as a loss scaler asks it to.
    """

    def __init__(self, step: StepRunner, was_skipped: Callable[[], bool]) -> None:
        self._step, self._was_skipped = step, was_skipped

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Refuse weights that are lost already, and scale multipliers to the run's length."""
        if args.gradient_checkpointing:  # which transformers has turned on by now, in every layer
            keep_share(facts["model"], args.checkpointing_share)
        self._step.updates.check_start(facts["model"], facts["optimizer"], state.global_step)
        evaluations = _evaluations(args, state)
        self._step.constraints.plan(state.max_steps, evaluations, facts["model"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Look at the weights, then move the multipliers."""
        step = state.global_step + 1
        self._step.updates.look(facts["model"], facts["optimizer"], step, Path(args.output_dir))
        self._step.constraints.close_step(step, skipped=self._was_skipped())


def _evaluations(args: Any, state: Any) -> int:
    """How many sets a run evaluates after its first step; each moves multipliers of texts."""
    every = state.eval_steps if args.eval_strategy == "steps" else 0
    times = state.max_steps // every if every else math.ceil(state.num_train_epochs)
    return max(1, int(times))
