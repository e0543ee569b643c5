"""What mypy is told of transformers' ``Trainer`` and of what it holds: no more than is used here.

transformers' own annotations are not followed, so that without this every ``self.state`` would be
an ``Any``. Nothing here runs; ``transformers_seams`` puts the real class in its place.

Not here: what transformers calls private (``transformers_seams``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from counterpoint.config import CPOConfig


class State(Protocol):
    """transformers' ``TrainerState``."""

    global_step: int
    max_steps: int
    epoch: float | None
    log_history: list[dict[str, Any]]
    best_global_step: int | None
    best_model_checkpoint: str | None
    stateful_callbacks: dict[str, Any]
    num_input_tokens_seen: int


class Control(Protocol):
    """transformers' ``TrainerControl``: what the loop is to do next."""

    should_log: bool
    should_evaluate: bool
    should_save: bool
    should_epoch_stop: bool
    should_training_stop: bool


class Handler(Protocol):
    """transformers' ``CallbackHandler``."""

    callbacks: list[Any]
    eval_dataloader: Any

    def on_epoch_end(self, args: CPOConfig, state: State, control: Control) -> Control:
        """Tell the callbacks that an epoch has ended."""

    def on_save(self, args: CPOConfig, state: State, control: Control) -> Control:
        """Tell the callbacks that a checkpoint was saved."""

    def on_prediction_step(self, args: CPOConfig, state: State, control: Control) -> Control:
        """Tell the callbacks that a batch was evaluated."""


class Accelerator(Protocol):
    """accelerate's ``Accelerator``."""

    scaler: Any
    gradient_accumulation_steps: int

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether the gradient scaler has left out the last step."""

    def unscale_gradients(self, optimizer: Any = None) -> None:
        """Undo the gradient scaler's factor, where there is one."""

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the precision of the options."""

    def unwrap_model(
        self, model: Any, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
    ) -> Any:
        """The model without what distributed training has put around it."""


class TrainerFace:
    """transformers' ``Trainer``."""

    args: CPOConfig
    accelerator: Accelerator
    callback_handler: Handler
    compute_metrics: Callable[[Any], dict[str, float]] | None
    control: Control
    eval_dataset: Any
    hp_search_backend: Any
    is_in_train: bool
    lr_scheduler: Any
    model: nn.Module
    model_accepts_loss_kwargs: bool
    optimizer: torch.optim.Optimizer
    processing_class: Any
    state: State
    train_dataset: Any

    def __init__(self, *args: Any, callbacks: list[Any] | None = None, **more: Any) -> None:
        """Make one of a model, its data and options."""

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train from the start or a checkpoint."""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on one set or several."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a line to the history and tell the callbacks."""

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch."""
        raise NotImplementedError

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer unless there is one."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        """What is trained on, window by window."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model."""

    def push_to_hub(self, commit_message: str = "", **more: Any) -> Any:
        """Send the model to the hub."""

    def add_callback(self, callback: Any) -> None:
        """Add a callback."""

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first of a class."""

    def store_flos(self) -> None:
        """Add the operations of the last steps to the state."""

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        raise NotImplementedError
