"""A transformers ``Trainer`` whose checkpoints are whole, and hold all that a run needs to resume.

Not here: how files come to be whole (``checkpoint.saving``), resuming (``resumable``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from counterpoint import ranks
from counterpoint.checkpoint.callbacks import callback_states, exported_states
from counterpoint.checkpoint.consolidate import lay_beside, save_sharded_model
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.checkpoint.folder import publish, staging
from counterpoint.checkpoint.manifest import File, seal
from counterpoint.checkpoint.optimizer import named_state
from counterpoint.checkpoint.randomness import random_state
from counterpoint.checkpoint.resumption import SHARED, tree_of_rank
from counterpoint.checkpoint.saving import (
    save_checkpoint,
    save_model_folder,
    write_model,
    write_options,
)
from counterpoint.checkpoint.segments import Segment, as_state
from counterpoint.checkpoint.sharded import write_states
from counterpoint.checkpoint.state_file import TRAINER_STATE, write_state
from counterpoint.checkpoint.tree import write_tree
from counterpoint.checkpoint.trial_save import saved_beside, try_saving
from counterpoint.checkpoint.weights import WEIGHTS
from counterpoint.console.phases import phase
from counterpoint.engine.table import engine_for
from counterpoint.runlog import RunLog
from counterpoint.step.finite import refuse_non_finite
from counterpoint.trainer.place import Interrupted, Place
from counterpoint.trainer.transformers_seams import Moment, Seams


class SavingTrainer(Seams):
    """What a run saves, and when; a subclass says what more belongs to it."""

    run_log: RunLog

    def __init__(
        self, *args: Any, callbacks: list[TrainerCallback] | None = None, **more: Any
    ) -> None:
        self._place = Place()
        self._experiment: Fingerprint | None = None
        self._asked_to_end = 0
        self._saved_step: int | None = None
        self._segments: list[Segment] = []
        self.heeds_signals = False
        """Whether ranks ask each other after every step whether a signal has come."""
        self._last_norm: torch.Tensor | float | None = None
        self._last_rate: float | None = None
        super().__init__(*args, callbacks=[*(callbacks or []), self._place], **more)
        self.engine = engine_for(self.accelerator, self.model)

    # ---- what a subclass says of itself ----

    def fingerprint(self) -> Fingerprint:
        """What makes this experiment this one."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What all ranks have in common, beside what transformers keeps; a tree."""
        return {}

    def rank_state_dict(self) -> dict[str, Any]:
        """What this rank alone has; a tree."""
        return {}

    def _this_experiment(self) -> Fingerprint:
        """The fingerprint, found once a run: it goes through all of the data."""
        if self._experiment is None:
            with phase("taking the fingerprint of model and data"):
                self._experiment = self.fingerprint()
        return self._experiment

    # ---- saving ----

    def report_and_save(self, moment: Moment) -> None:
        """Remember what a log line at the end of the epoch would say of its last step."""
        self._last_norm, self._last_rate = moment.grad_norm, moment.learning_rate
        super().report_and_save(moment)
        number = self._signal()
        if number:
            if self.args.save_strategy != SaveStrategy.NO:
                self.save_now(moment.model, moment.trial)
            raise Interrupted(number)

    def save_now(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint of this step, unless there is one.

        Args:
            model: as wrapped for training.
            trial: of a search for hyperparameters, or None.

        Raises:
            SetupError: CP515 where it cannot be written.
        """
        if self._saved_step != self.state.global_step:
            self.request_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def end_after_step(self, number: int) -> None:
        """End the training after the running step, with a checkpoint unless save_strategy is no.

        Training then raises ``Interrupted``. May be called in a signal handler. Of several ranks
        each must be told, or each must have been once ``heeds_signals``.

        Args:
            number: of the signal that asks for it.
        """
        self._asked_to_end = number

    def _signal(self) -> int:
        """The number of a signal that has reached any rank; 0 for none."""
        if not self.heeds_signals:
            return self._asked_to_end
        return int(ranks.most(torch.tensor(self._asked_to_end, device=self.args.device)))

    def write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; it is there whole, or not at all."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run = self.output_folder(trial)
        target = run / f"checkpoint-{self.state.global_step}"
        best = run / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if self.engine.shards:
            self._this_experiment()  # ranks meet where it reads their parts
        save_checkpoint(
            target,
            self._write_parts,
            self._publish,
            limit=self.args.save_total_limit,
            keep=[best] if self.state.best_global_step else [],
        )
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            if self.engine.shards:
                ranks.first_does(partial(lay_beside, target, self))
            self.request_push(target)

    def _write_parts(self, staged: Path) -> None:
        """The files of this rank; it meets no other."""
        whole = not self.args.save_only_model
        if whole:
            own = {"random": random_state(self.args.device), "loss": self.running_loss}
            own["own"] = self.rank_state_dict()
            write_tree(staged, tree_of_rank(self.args.process_index), own)
        target = staged.with_name(f"checkpoint-{self.state.global_step}")
        self._write_weights(staged, target, self.optimizer if whole else None)
        if ranks.rank() == 0:
            if whole:
                write_tree(staged, SHARED, self._shared())
            self._write_trainer_state(staged)

    def _write_weights(self, folder: Path, target: Path, optimizer: Any = None) -> None:
        """What this rank writes of the model, and of the optimizer if it is saved."""
        plain, shards = self._plain(self.model), self.engine.shards
        if shards or ranks.rank() == 0:
            self.engine.at_rest(plain)
            refuse_non_finite(plain, optimizer, target)
            state = None if optimizer is None else named_state(optimizer, plain)
            write_states(folder, plain, state, by_shard=shards)
        if ranks.rank() == 0:
            self._write_model(folder, weights=not shards)

    def _publish(self, target: Path, files: Mapping[str, File]) -> None:
        seal(
            staging(target),
            step=self.state.global_step,
            resumable=not self.args.save_only_model,
            fingerprint=self._this_experiment(),
            files=files,
        )
        publish(target)

    def _shared(self) -> dict[str, Any]:
        scaler = getattr(self.accelerator, "scaler", None)
        stopped = self.control.should_training_stop
        norm = self._last_norm
        return {
            "place": {
                "epoch": self._place.epoch,
                "steps": self._place.steps,
                "closed": self._place.closed,
                "stopped": stopped and self.state.global_step < self.state.max_steps,
                "epoch_stopped": self.control.should_epoch_stop,
            },
            "totals": {
                "loss": self.total_loss,
                "last_logged": self.last_logged,
                "grad_norm": norm if norm is None else float(norm),
                "learning_rate": self._last_rate,
            },
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "callbacks": callback_states(self.callback_handler.callbacks),
            "streams": self.run_log.lengths(),
            "segments": as_state(self._segments),
            "own": self.state_dict(),
        }

    def _write_trainer_state(self, staged: Path) -> None:
        self.state.stateful_callbacks = exported_states(
            [*self.callback_handler.callbacks, self.control]
        )
        write_state(self.state, staged / TRAINER_STATE)

    def write_model_files(self, folder: Path | None, state_dict: Any) -> None:
        """Save the model; each of its files is there whole, or as it was before."""
        folder = Path(self.args.output_dir) if folder is None else folder
        if self.engine.shards:
            save_sharded_model(folder, partial(self._write_weights, target=folder / WEIGHTS))
        elif self.args.should_save:
            refuse_non_finite(self._plain(self.model), None, folder / WEIGHTS)
            save_model_folder(folder, partial(self._write_model, state_dict=state_dict))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; every rank must call it."""
        if not self.engine.shards:  # of which transformers would gather all at once
            super().save_model(output_dir, _internal_call)
            return
        self.write_model_files(Path(output_dir or self.args.output_dir), None)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write_model(self, folder: Path, state_dict: Any = None, *, weights: bool = True) -> None:
        tokenizer, options = self.processing_class, self.args.to_dict()
        plain = self._plain(self.model)
        write_model(folder, plain, tokenizer, options, state_dict, weights=weights)

    def try_saving(self) -> None:
        """Save everything but the weights once, and throw it away; before the first step.

        Raises:
            SetupError: CP518 for what cannot be saved.
        """
        parts: dict[str, Callable[[Path], object]] = {
            "options": partial(write_options, self.args.to_dict()),
            **saved_beside(self._plain(self.model), self.processing_class, self.engine.shards),
            "state of the callbacks": self._write_callbacks,
        }
        if self.args.should_save:
            with phase("trying to save everything but the weights"):
                try_saving(Path(self.args.output_dir), parts)

    def _write_callbacks(self, folder: Path) -> None:
        write_tree(folder, SHARED, {"callbacks": callback_states(self.callback_handler.callbacks)})
        self._write_trainer_state(folder)

    def _plain(self, model: Any) -> Any:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _mean_loss(self) -> float:
        """The mean loss of a step, of all steps of the run."""
        return float(self.total_loss / max(self.state.global_step, 0.001))
