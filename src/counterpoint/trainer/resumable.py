"""A transformers ``Trainer`` that can be killed anywhere and resumes bit for bit.

What transformers does otherwise, and why it is replaced:

1. It writes a checkpoint file by file into its final folder, and pickles most of it. Here a
   checkpoint is staged, sealed and renamed (``checkpoint.folder``), as safetensors and JSON.
2. It loads what it finds, skips weights under unknown names, and asks nothing of data or
   objective. Here all of it is verified before any of it is loaded.
3. Resuming, it forgets sums since the last log line, the total of the loss, whether an epoch's end
   was still to come, where a second pass over a stream was, and that training had been stopped; it
   draws random numbers in the wrong order; and it evaluates once more. ``Place`` and the two
   states of ``saving`` say all that.

Not here: what a step is and what is logged (``trainer``), and signals (the command).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from counterpoint import ranks
from counterpoint.checkpoint.callbacks import load_callback_states
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.checkpoint.folder import step_of
from counterpoint.checkpoint.lock import contents, locked, own_change, refuse_changed
from counterpoint.checkpoint.manifest import read_manifest
from counterpoint.checkpoint.optimizer import load_named_state
from counterpoint.checkpoint.randomness import set_random_state
from counterpoint.checkpoint.rank_states import States, on_these_ranks
from counterpoint.checkpoint.resumption import (
    Resumption,
    compared,
    find_checkpoint,
    read_resumption,
)
from counterpoint.checkpoint.segments import segment_of
from counterpoint.checkpoint.sharded import load_saved, read_optimizer
from counterpoint.checkpoint.state_file import check_optimizer, take_numbers
from counterpoint.checkpoint.together import tidy_together, verify_together
from counterpoint.console.phases import phase
from counterpoint.log import logger
from counterpoint.runlog import STREAMS
from counterpoint.trainer.saving import SavingTrainer
from counterpoint.trainer.transformers_seams import Epoch


class ResumableTrainer(SavingTrainer):
    """What ``CPOTrainer`` adds to, and what it inherits of resuming after a kill."""

    def __init__(self, *args: Any, **more: Any) -> None:
        ranks.leave_at_exit()
        self._resumption: Resumption | None = None
        self._restored = self._random_pending = False
        super().__init__(*args, **more)
        self._seen = contents(Path(self.args.output_dir))
        """What the folder held when the trainer was made; more of it is another run's."""

    # ---- what a subclass does with what it has saved ----

    def before_loading(self) -> None:
        """A checkpoint's weights are about to take the place of the model's."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what all ranks have in common, before the first step."""

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what this rank alone has, before the first step."""

    def experiment_like(self, then: Fingerprint) -> Fingerprint:
        """What makes this experiment this one, told as a checkpoint's fingerprint tells it."""
        return self._this_experiment()

    def merge_rank_states(self, states: States) -> tuple[dict[str, Any], dict[str, Any]]:
        """What rank 0 and what every other rank takes back, of the states of all that were."""
        return {}, {}

    # ---- resuming ----

    @property
    def is_resumed(self) -> bool:
        """Whether the running training resumed from a checkpoint."""
        return self._resumption is not None

    @property
    def base_then(self) -> str | None:
        """The name of the model that the resumed run began with; None where it is not known."""
        return None if self._resumption is None else self._resumption.base

    @contextmanager
    def resuming(self, wanted: str | Path | bool | None) -> Iterator[str | None]:
        """Keep other runs out, and make ready to resume from a checkpoint.

        Args:
            wanted: a checkpoint's folder; True or "latest" for the newest good one of
                ``output_dir``; "auto" for that or, where there is none, the start; None or False
                for the start.

        Yields:
            What transformers' ``train`` takes: the checkpoint's folder, verified, or None.

        Raises:
            ConfigError: CP103 where there is no checkpoint to resume from.
            SetupError: CP511 to CP514 for one that is not whole, of another experiment or of
                another kind; CP516 where another run writes in ``output_dir``, CP520 where one
                has written there since the trainer was made, unless this one resumes it.
        """
        run = Path(self.args.output_dir)
        with ExitStack() as stack:
            ranks.first_does(lambda: stack.enter_context(locked(run)))
            tidy_together(run)
            self._restored, self._experiment = False, None
            self._saved_step, self._segments = None, [segment_of(self.args)]
            self._resumption = self._found(run, wanted)
            self._random_pending = self._resumption is not None
            if self._resumption is not None and self._resumption.folder.parent.samefile(run):
                self._saved_step = self._resumption.manifest.step  # nothing is new until a step
            try:
                yield None if self._resumption is None else str(self._resumption.folder)
            finally:
                self._resumption, self._random_pending, self._asked_to_end = None, False, 0
                own_change(run)

    def _found(self, run: Path, wanted: str | Path | bool | None) -> Resumption | None:
        with phase("verifying the checkpoint to resume from"):
            found = find_checkpoint(run, wanted) if wanted else None
        if found is None:
            ranks.first_does(partial(refuse_changed, run, self._seen))
        if not wanted:
            return None
        if found is None:
            # what a run wrote that was killed before its first checkpoint is written again
            if self.is_world_process_zero():
                self.run_log.resumed(0, dict.fromkeys(STREAMS, 0))
            return None
        known = read_resumption(*found)
        known, self._segments = on_these_ranks(known, self)
        resumption = compared(
            known,
            partial(self.experiment_like, found[1].fingerprint),
            steps=self.steps_in_all(),
            base=self.base_name(),
            anyway=self.args.resume_anyway,
        )
        folder, step = resumption.folder, resumption.manifest.step
        if self.is_world_process_zero():
            own = folder.resolve().parent == run.resolve()
            self.run_log.resumed(step, resumption.shared["streams"] if own else {})
        logger().info("resuming after step %d, from %s", step, folder)
        return resumption

    def steps_in_all(self) -> int:
        """Optimizer steps of the whole run, as transformers will count them."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        windows: int = len(self.get_train_dataloader())
        an_epoch = max(math.ceil(windows / self.args.gradient_accumulation_steps), 1)
        steps: int = math.ceil(self.args.num_train_epochs * an_epoch)
        return steps

    def base_name(self) -> str:
        """The name of the model that the run began with; "" for one made in memory."""
        return ""

    def starting_place(self, found: tuple[int, int], epochs: int) -> tuple[int, int]:
        """The epoch to resume in, and how many of its windows are done; by position."""
        if self._resumption is None:
            return found
        best = self._resumption.folder.with_name(f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)  # the run's folder may have been moved
        place = self._resumption.shared["place"]
        more = place["epoch"] + 1 < epochs and not self._is_over()
        if place["closed"] and more:
            return place["epoch"] + 1, 0
        return place["epoch"], place["steps"] * self.args.gradient_accumulation_steps

    def before_callbacks_load(self) -> None:
        """Take numbers out of the marks that JSON needs."""
        take_numbers(self.state)

    def _is_over(self) -> bool:
        """Whether the run that is resumed had done its last step."""
        stopped = self._resumption is not None and self._resumption.stopped
        return stopped or self.state.global_step >= self.state.max_steps

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch, or what was left of it."""
        steps = epoch.windows_done // self.args.gradient_accumulation_steps
        resuming = self._resumption is not None and not self._restored
        self._place.enter(epoch.number, steps if epoch.number == epoch.first else 0)
        if not resuming or self._resumption is None:
            super().train_epoch(epoch)
            return
        self._restore(self._resumption)
        place = self._resumption.shared["place"]
        if place["closed"] and epoch.number == place["epoch"]:
            self._restore_random()
            self.control.should_training_stop = self._is_over()
        elif not place["closed"] and (
            self._is_over() or place["epoch_stopped"] or steps >= epoch.steps
        ):
            self._restore_random()
            self.control.should_training_stop = self._is_over()
            self._end_epoch(epoch)
        else:
            # older releases of transformers forget it for a loader that leaves out windows
            epoch.loader.set_epoch(epoch.number)
            epoch.loader.leave_out(epoch.windows_done)
            if steps == 0:
                self._restore_random()
            super().train_epoch(epoch)

    def _end_epoch(self, epoch: Epoch) -> None:
        """What comes after an epoch's last step, which the checkpoint did not see any more."""
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self.request_report(epoch.end(self.running_loss, self._last_norm, self._last_rate))

    def _restore(self, resumption: Resumption) -> None:
        """What the training loop has set to nothing by now, and what its callbacks have."""
        shared, totals = resumption.shared, resumption.shared["totals"]
        self.total_loss = totals["loss"]
        self.last_logged = totals["last_logged"]
        self._last_norm, self._last_rate = totals["grad_norm"], totals["learning_rate"]
        self.load_state_dict(shared["own"])
        if resumption.rank is not None:
            self.running_loss.copy_(resumption.rank["loss"])
            self.load_rank_state_dict(resumption.rank["own"])
        load_callback_states(
            self.callback_handler.callbacks, shared["callbacks"], self.state.stateful_callbacks
        )
        self._restored = True

    def _restore_random(self) -> None:
        """Draw random numbers from where the run stopped; once, just before the first step."""
        if not self._random_pending:
            return
        self._random_pending = False
        if self._resumption is not None and self._resumption.rank is not None:
            set_random_state(self._resumption.rank["random"])

    def load_model_weights(self, folder: Path, model: nn.Module | None) -> None:
        """Load all of a checkpoint's weights, or raise."""
        self.before_loading()
        target = self.model if model is None else model
        listed = read_manifest(folder) if self._resumption is None else self._resumption.manifest
        with phase(f"loading the weights of {folder}"):
            load_saved(self._plain(target), folder, listed.files)

    def load_best_weights(self) -> None:
        """Load the weights of the best checkpoint, verified."""
        best = Path(str(self.state.best_model_checkpoint))
        with phase(f"loading the best model, {best.name}"):
            manifest = verify_together(best, step=step_of(best))
            self.engine.at_rest(self.model)
            load_saved(self._plain(self.model), best, manifest.files)

    def load_optimizer_state(self, folder: Path) -> None:
        """Load the states of optimizer and learning rate, where a run resumes."""
        if self._resumption is None:
            return
        with phase(f"loading the optimizer of {folder}"):
            plain, listed = self._plain(self.model), self._resumption.manifest.files
            self.engine.at_rest(plain)
            saved = check_optimizer(read_optimizer(folder, plain, listed), folder)
            load_named_state(self.optimizer, plain, saved)
        self.lr_scheduler.load_state_dict(self._resumption.shared["scheduler"])

    def load_scaler_state(self) -> None:
        """Load the state of the gradient scaler, where there is one."""
        if self._resumption is not None and self._resumption.shared["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self._resumption.shared["scaler"])

    def evaluate_in_training(
        self, trial: Any, ignored: list[str] | None, *, at_start: bool
    ) -> dict[str, float]:
        """Evaluate; not at the start of a resumed run, which did it when it started."""
        if at_start and self._resumption is not None:
            return {}
        return super().evaluate_in_training(trial, ignored, at_start=at_start)
