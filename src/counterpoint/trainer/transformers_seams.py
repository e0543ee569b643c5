"""The one file that names what transformers' ``Trainer`` and accelerate call private.

``Seams`` overrides those methods and hands over to hooks with names of our own, which
``ResumableTrainer`` and ``CPOTrainer`` override. A hook that calls ``super()`` comes back here, and
from here to transformers. What is asked of transformers by one of its private names goes through
that name (``request_...``), so that a user's subclass that replaces it is still asked. Private
attributes are properties. ``tests/house/test_seams.py`` pins the signatures of all of it.

Not here: what any of it is for (``saving``, ``resumable``, ``trainer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from counterpoint import ranks
from counterpoint.model_seams import said_to_save_models_only

if TYPE_CHECKING:
    from counterpoint.trainer.face import TrainerFace

    class Trainer(TrainerFace):
        """What ``Seams`` calls of transformers' private methods and attributes."""

        _tr_loss: torch.Tensor
        _total_loss_scalar: float
        _globalstep_last_logged: int
        _train_batch_size: int

        def _get_output_dir(self, trial: Any) -> str: ...
        def _init_training_state(self, *facts: Any) -> tuple[int, int]: ...
        def _load_callback_state(self) -> None: ...
        def _run_epoch(self, **facts: Any) -> None: ...
        def _clip_grad_norm(self, model: nn.Module) -> Any: ...
        def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any: ...
        def _maybe_log_save_evaluate(self, *facts: Any, **more: Any) -> None: ...
        def _evaluate(self, *facts: Any, **more: Any) -> dict[str, float]: ...
        def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool: ...
        def _push_from_checkpoint(self, checkpoint_folder: str) -> None: ...
        def _finalize_training(self, *facts: Any, **more: Any) -> Any: ...
else:
    from transformers import Trainer

EVALUATION = "evaluation_loop, compute_metrics, or trainer.objective"
_COLUMNS = "columns are chosen by their meaning (docs/data.md); change the train_dataset"
_OF_NORMS = ("_has_mixed_mesh_grads", "_mixed_mesh_grad_norm")  # not in every release
_SAVING = "state_dict and rank_state_dict with their load_ methods, which make up a checkpoint"

IDLE: Mapping[str, str] = MappingProxyType(
    {
        "_nested_gather": EVALUATION,
        "_get_dataloader": "get_train_dataloader and get_eval_dataloader",
        "_get_train_sampler": "train_sampling_strategy, or get_train_dataloader",
        "_get_eval_sampler": "get_eval_dataloader",
        "_get_collator_with_removed_columns": _COLUMNS,
        "_remove_unused_columns": _COLUMNS,
        "_set_signature_columns_if_needed": _COLUMNS,
        "_get_num_items_in_batch": "get_batch_samples",
        "_prepare_input": "_prepare_inputs",
        "_issue_warnings_after_load": "_load_from_checkpoint",
        "_save_rng_state": _SAVING,
        "_save_optimizer_and_scheduler": _SAVING,
        "_save_scaler": _SAVING,
        "_rotate_checkpoints": "save_total_limit, or a callback's on_save",
        "_sorted_checkpoints": "save_total_limit, or a callback's on_save",
        **dict.fromkeys([n for n in _OF_NORMS if hasattr(Trainer, n)], "_clip_grad_norm"),
        **(
            {"create_optimizer_and_scheduler": "create_optimizer and create_scheduler"}
            if hasattr(Trainer, "_prepare_for_training")  # before, transformers itself called it
            else {}
        ),
    }
)
"""Method of transformers' that nothing calls here -> the hook that is ours (``hooks``)."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, as the training loop begins it.

    Args:
        number: from 0.
        first: the epoch that this training began in.
        steps: optimizer steps of a whole epoch.
        windows_done: of accumulation, in the epoch that this training began in.
        loader: gives the windows.
        facts: all that transformers has said of it.
    """

    number: int
    first: int
    steps: int
    windows_done: int
    loader: Any
    facts: Mapping[str, Any]

    def end(
        self,
        loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        learning_rate: float | None,
    ) -> Moment:
        """The moment when this epoch ends.

        Args:
            loss: what transformers has added up since its last log line.
            grad_norm: of the last step, where it has one.
            learning_rate: of the last step.
        """
        return Moment(
            loss,
            grad_norm,
            self.facts["model"],
            self.facts["trial"],
            self.number,
            self.facts["ignore_keys_for_eval"],
            self.facts["start_time"],
            learning_rate,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """The end of a step, or of an epoch: time to log, evaluate and save.

    Args:
        loss: what transformers has added up since its last log line; it is set to zero there.
        grad_norm: of the last step, where it has one.
        model: as wrapped for training.
        trial: of a search for hyperparameters, or None.
        epoch: that is running, from 0.
        ignored: keys that an evaluation is to leave out.
        start_time: when the training began.
        learning_rate: of the last step.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor | float | None
    model: nn.Module
    trial: Any
    epoch: int
    ignored: list[str] | None
    start_time: float
    learning_rate: float | None = None

    @property
    def facts(self) -> tuple[Any, ...]:
        """All but the learning rate, in transformers' order."""
        return tuple(getattr(self, field.name) for field in fields(self))[:-1]


class Seams(Trainer):
    """transformers' ``Trainer`` by public names."""

    loss_is_scaled_for_ga = True  # shares of a step are divided by the step's totals already

    def __init__(self, *args: Any, **more: Any) -> None:
        """Leave the division by the steps of accumulation to the denominators of the step."""
        with said_to_save_models_only(more.get("args"), more.get("model")):
            super().__init__(*args, **more)
        # older releases of transformers ask the model instead of loss_is_scaled_for_ga, and let
        # accelerate divide by the accumulation once more
        self.model_accepts_loss_kwargs = True
        self.accelerator.gradient_accumulation_steps = 1

    # ---- what it holds ----

    @property
    def running_loss(self) -> torch.Tensor:
        """The loss since the last log line, on this rank; a tensor that is changed in place."""
        found: torch.Tensor = self._tr_loss
        return found

    @property
    def total_loss(self) -> float:
        """The loss of all steps up to the last log line."""
        return float(self._total_loss_scalar)

    @total_loss.setter
    def total_loss(self, value: float) -> None:
        """Set it, as a resumed run must."""
        self._total_loss_scalar = value

    @property
    def last_logged(self) -> int:
        """The step of the last log line."""
        return int(self._globalstep_last_logged)

    @last_logged.setter
    def last_logged(self, step: int) -> None:
        """Set it, as a resumed run must."""
        self._globalstep_last_logged = step

    @property
    def micro_batch_size(self) -> int:
        """Pairs of a window of accumulation on this rank."""
        return int(self._train_batch_size)

    def output_folder(self, trial: Any) -> Path:
        """The run's folder, or the one of a trial of a search for hyperparameters."""
        return Path(self._get_output_dir(trial))

    # ---- what is asked of it ----

    def request_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint."""
        self._save_checkpoint(model, trial)

    def request_push(self, folder: Path) -> None:
        """Send a checkpoint to the hub."""
        self._push_from_checkpoint(str(folder))

    def request_report(self, moment: Moment) -> None:
        """Log, evaluate and save, as far as it is time."""
        self._maybe_log_save_evaluate(*moment.facts, learning_rate=moment.learning_rate)

    # ---- hooks around what transformers does ----

    def starting_place(self, found: tuple[int, int], epochs: int) -> tuple[int, int]:
        """The epoch to begin in, and how many of its windows are done.

        Args:
            found: as transformers counts them.
            epochs: of the whole run.
        """
        return found

    def before_callbacks_load(self) -> None:
        """``trainer_state.json`` has been read; its callbacks' states are loaded next."""

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch."""
        super()._run_epoch(**epoch.facts)

    def report_and_save(self, moment: Moment) -> None:
        """Log, evaluate and save, as far as it is time."""
        super()._maybe_log_save_evaluate(*moment.facts, learning_rate=moment.learning_rate)

    def evaluate_in_training(
        self, trial: Any, ignored: list[str] | None, *, at_start: bool
    ) -> dict[str, float]:
        """Evaluate while training.

        Args:
            trial: of a search for hyperparameters, or None.
            ignored: keys that the evaluation is to leave out.
            at_start: it is before the first step (``eval_on_start``), and no schedule follows it.
        """
        found: dict[str, float] = super()._evaluate(trial, ignored, at_start)
        return found

    def is_best_so_far(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best so far."""
        return bool(super()._determine_best_metric(metrics, trial))

    def push_checkpoint(self, folder: str) -> None:
        """Send a checkpoint to the hub."""
        super()._push_from_checkpoint(folder)

    # ---- hooks in place of what transformers does ----

    def clip_gradient(self, model: nn.Module) -> Any:
        """Cut the step's gradient to ``max_grad_norm``; its norm before."""
        raise NotImplementedError

    def step_norm(self, model: nn.Module, norm: Any) -> Any:
        """The norm of the step's gradient; the last moment before the weights move.

        Args:
            model: as wrapped for training.
            norm: as found before it was clipped; None where it was not.
        """
        raise NotImplementedError

    def load_model_weights(self, folder: Path, model: nn.Module | None) -> None:
        """Load a checkpoint's weights into a model; None for the one that trains."""
        raise NotImplementedError

    def load_best_weights(self) -> None:
        """Load the weights of ``state.best_model_checkpoint``."""
        raise NotImplementedError

    def load_optimizer_state(self, folder: Path) -> None:
        """Load the states of the optimizer and of the learning rate."""
        raise NotImplementedError

    def load_scaler_state(self) -> None:
        """Load the state of the gradient scaler."""
        raise NotImplementedError

    def write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint of this step."""
        raise NotImplementedError

    def write_model_files(self, folder: Path | None, state_dict: Any) -> None:
        """Write the model and its tokenizer into a folder; None for the run's own."""
        raise NotImplementedError

    def count_input_tokens(self, inputs: Any) -> None:
        """Add what ``include_num_input_tokens_seen`` asks for to the state."""
        raise NotImplementedError

    # ---- transformers' own names ----

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        return self.starting_place(found, num_train_epochs)

    def _load_callback_state(self) -> None:
        self.before_callbacks_load()
        super()._load_callback_state()

    def _run_epoch(self, **facts: Any) -> None:
        self.train_epoch(
            Epoch(
                number=facts["epoch"],
                first=facts["epochs_trained"],
                steps=facts["num_update_steps_per_epoch"],
                windows_done=facts["steps_trained_in_current_epoch"],
                loader=facts["train_dataloader"],
                facts=facts,
            )
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return self.clip_gradient(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self.step_norm(model, grad_norm)

    def _maybe_log_save_evaluate(self, *facts: Any, **more: Any) -> None:
        self.report_and_save(Moment(*facts, **more))

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        return self.evaluate_in_training(trial, ignore_keys_for_eval, at_start=skip_scheduler)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return self.is_best_so_far(metrics, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    def _finalize_training(self, *facts: Any, **more: Any) -> Any:
        # transformers takes rank 0's loss since the last log line for that of all ranks
        self.running_loss.copy_(ranks.add_up(self.running_loss.clone()) / ranks.count())
        # without transformers' own removal of checkpoints: saving has done it
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*facts, **more)
        finally:
            self.args.save_total_limit = limit

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.load_model_weights(Path(resume_from_checkpoint), model)

    def _load_best_model(self) -> None:
        self.load_best_weights()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_optimizer_state(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        self.load_scaler_state()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Not when transformers would: by then something may have been drawn for the step."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.write_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.write_model_files(None if output_dir is None else Path(output_dir), state_dict)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        self.count_input_tokens(inputs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # on the device since get_batch_samples
