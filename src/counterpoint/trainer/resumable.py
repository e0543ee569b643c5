"""A transformers ``Trainer`` that can be killed anywhere and goes on bit for bit.

What transformers does otherwise, and why it is replaced:

1. It writes a checkpoint file by file into its final folder, and pickles most of it. Here a
   checkpoint is staged, sealed and renamed (``checkpoint.folder``), as safetensors and JSON.
2. It loads what it finds, skips weights under unknown names, and asks nothing of data or
   objective. Here all of it is verified before any of it is loaded.
3. Going on, it forgets sums since the last log line, the total of the loss, whether an epoch's end
   was still to come, where a second pass over a stream was, and that training had been stopped; it
   draws random numbers in the wrong order; and it evaluates once more. ``Place`` and the two
   states below say all that.

Not here: what a step is and what is logged (``trainer``), and signals (the command).
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_model
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from counterpoint import ranks
from counterpoint.checkpoint.adapted import BASE
from counterpoint.checkpoint.experiment import in_words_of_today, remedy
from counterpoint.checkpoint.fingerprint import Fingerprint, differences
from counterpoint.checkpoint.folder import (
    begin,
    discard,
    filled,
    finished,
    last_good,
    publish,
    rotate,
    staging,
    step_of,
    tidy,
)
from counterpoint.checkpoint.lock import contents, locked, own_change, refuse_changed
from counterpoint.checkpoint.manifest import Manifest, read_manifest, seal, verify
from counterpoint.checkpoint.optimizer import load_named_state, named_state
from counterpoint.checkpoint.randomness import random_state, set_random_state
from counterpoint.checkpoint.state_file import (
    check_optimizer,
    check_trees,
    read_state,
    take_numbers,
    write_state,
)
from counterpoint.checkpoint.tree import plain_io_errors, read_tree, write_tree
from counterpoint.checkpoint.trial_save import (
    generation_config_as_it_is,
    save_and_reopen_tokenizer,
    save_configs,
    try_saving,
)
from counterpoint.checkpoint.weights import INDEX, WEIGHTS, load_weights, write_beside
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.data.batching import DealtStream
from counterpoint.engine.table import engine_for
from counterpoint.errors import ConfigError, SetupError
from counterpoint.masking import Mask
from counterpoint.models.bases import base_then, other_base, unknown_base
from counterpoint.runlog import STREAMS, RunLog, logger
from counterpoint.step.finite import refuse_non_finite
from counterpoint.strict import strict_json
from counterpoint.trainer.transformers_seams import Epoch, Moment, Seams

Result = TypeVar("Result")

TRAINER_STATE = "trainer_state.json"
"""transformers' own account of a run; its name is what its callbacks and the hub look for."""

OPTIONS = "training_args.json"
SHARED, OPTIMIZER = "run_state", "optimizer"

PASSING = (errno.EINTR, errno.EAGAIN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY)
"""Errors of a disk that may be over a moment later, as on one across a network."""

WAITS = (0.5, 2.0)
"""Seconds before each further attempt to save."""


class Place(TrainerCallback):
    """Where in its epochs a run is; told by the training loop itself.

    ``steps`` were done in epoch ``epoch``, and ``closed`` says that what comes at its end (log
    line, evaluation) has come.
    """

    def __init__(self) -> None:
        """Before the first step."""
        self.epoch, self.steps, self.closed = 0, 0, False

    def enter(self, epoch: int, steps: int) -> None:
        """An epoch begins, or goes on after some of its steps."""
        self.epoch, self.steps, self.closed = epoch, steps, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step was done; saving comes after."""
        self.steps += 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is done from here on belongs to the end of the epoch."""
        self.closed = True


class Interrupted(KeyboardInterrupt):
    """A signal ended the training.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Say nothing more yet."""
        super().__init__()
        self.exit_code = 128 + number
        """What a shell reports of a process that a signal ended."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A verified checkpoint that a run goes on from.

    Args:
        folder: where it lies.
        manifest: as verified.
        shared: what all ranks have in common.
        rank: what this rank alone has; None where it had none.
        base: name of the model that its run began with; None where another lies under it now.
    """

    folder: Path
    manifest: Manifest
    shared: dict[str, Any]
    rank: dict[str, Any] | None
    base: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a callback had stopped the training before its last step."""
        return bool(self.shared["place"]["stopped"])


class ResumableTrainer(Seams):
    """What ``CPOTrainer`` adds to, and what it inherits of going on after a kill."""

    run_log: RunLog

    def __init__(self, *args: Any, callbacks: list[TrainerCallback] | None = None, **more: Any):
        """Nothing is locked or written yet."""
        ranks.leave_at_exit()
        self._place = Place()
        self._resumption: Resumption | None = None
        self._restored = self._random_pending = False
        self._experiment: Fingerprint | None = None
        self._asked_to_end = 0
        self._saved_step: int | None = None
        self.heeds_signals = False
        """Whether ranks ask each other after every step whether a signal has come."""
        self._last_norm: torch.Tensor | float | None = None
        self._last_rate: float | None = None
        super().__init__(*args, callbacks=[*(callbacks or []), self._place], **more)
        self.engine = engine_for(self.accelerator, self.model)
        self._seen = contents(Path(self.args.output_dir))
        """What the folder held when the trainer was made; more of it is another run's."""

    # ---- what a subclass says of itself ----

    def fingerprint(self) -> Fingerprint:
        """What makes this experiment this one."""
        return {}

    def shared_state(self) -> dict[str, Any]:
        """What all ranks have in common, beside what transformers keeps; a tree."""
        return {}

    def before_loading(self) -> None:
        """A checkpoint's weights are about to take the place of the model's."""

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Take it back, before the first step."""

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone has; a tree."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take it back, before the first step."""

    # ---- going on ----

    @property
    def is_going_on(self) -> bool:
        """Whether the running training goes on from a checkpoint."""
        return self._resumption is not None

    @property
    def base_then(self) -> str | None:
        """The name of the model that the resumed run began with; None where it is not known."""
        return None if self._resumption is None else self._resumption.base

    @contextmanager
    def going_on(self, wanted: str | Path | bool | None) -> Iterator[str | None]:
        """Keep other runs out, and make ready to go on from a checkpoint.

        Args:
            wanted: a checkpoint's folder; True or "latest" for the newest good one of
                ``output_dir``; "auto" for that or, where there is none, the start; None or False
                for the start.

        Yields:
            What transformers' ``train`` takes: the checkpoint's folder, verified, or None.

        Raises:
            ConfigError: CP103 where there is no checkpoint to go on from.
            SetupError: CP511 to CP514 for one that is not whole, of another experiment or of
                another kind; CP516 where another run writes in ``output_dir``, CP520 where one
                has written there since the trainer was made, unless this one resumes it.
        """
        run = Path(self.args.output_dir)
        with ExitStack() as stack:
            ranks.first_does(lambda: stack.enter_context(locked(run)))
            ranks.first_does(lambda: tidy(run))
            self._restored, self._experiment = False, None
            self._saved_step = None
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
        with phase("verifying the checkpoint to go on from"):
            found = ranks.first_does(partial(find_checkpoint, run, wanted)) if wanted else None
        if found is None:
            ranks.first_does(partial(refuse_changed, run, self._seen))
        if not wanted:
            return None
        if found is None:
            # what a run wrote that was killed before its first checkpoint is written again
            if self.is_world_process_zero():
                self.run_log.resumed(0, dict.fromkeys(STREAMS, 0))
            return None
        folder, manifest = found
        if not manifest.resumable:
            raise SetupError(
                "CP514",
                f"{folder} holds the model alone (save_only_model), which a run cannot go on from. "
                "Give it as the model of a new run.",
            )
        shared, rank = read_tree(folder, SHARED), f"rank-{self.args.process_index}"
        own_state = read_tree(folder, rank) if f"{rank}.json" in manifest.files else None
        check_trees(shared, own_state, folder)
        base = base_then(folder, shared["own"])
        different = self._check_experiment(folder, manifest, base)
        resumption = Resumption(
            folder, manifest, shared, own_state, base=None if BASE in different else base
        )
        if self.is_world_process_zero():
            own = folder.resolve().parent == run.resolve()
            self.run_log.resumed(manifest.step, resumption.shared["streams"] if own else {})
        logger().info("going on after step %d, from %s", manifest.step, folder)
        return resumption

    def _this_experiment(self) -> Fingerprint:
        """The fingerprint, found once a run: it goes through all of the data."""
        if self._experiment is None:
            with phase("taking the fingerprint of model and data"):
                self._experiment = self.fingerprint()
        return self._experiment

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

    def _check_experiment(
        self, folder: Path, manifest: Manifest, base: str | None
    ) -> tuple[str, ...]:
        """What differs, by the names of the facts; refused unless it is meant."""
        done, steps = manifest.step, self.steps_in_all()
        if steps < done:
            raise SetupError(
                "CP513",
                f"{folder} is after step {done:,}, and the run is to have {steps:,} in all "
                "(max_steps, num_train_epochs), so that nothing would be trained. Ask for more "
                "steps, or take the checkpoint as the model of a new run.",
            )
        state = read_state(folder / TRAINER_STATE)
        now = self._this_experiment()
        if BASE in now and BASE not in manifest.fingerprint:
            logger().warning("%s", unknown_base(folder, base))
        then = in_words_of_today(manifest.fingerprint, int(state["max_steps"]))
        different = differences(then, now)
        if not different:
            return ()
        text = f"{folder} is of a different experiment: {'; '.join(different.values())}."
        if BASE in different:
            text += other_base(base, self.base_name())
        if self.args.resume_anyway:
            logger().warning("resume_anyway: %s", text)
            return tuple(different)
        raise SetupError(
            "CP513",
            f"{text} Go on with the options and data it was made with, or with "
            f"resume_anyway=True if the difference is meant.{remedy(different)}",
        )

    def starting_place(self, found: tuple[int, int], epochs: int) -> tuple[int, int]:
        """The epoch to go on in, and how many of its windows are done; by position."""
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
        """Whether the run that is gone on with had done its last step."""
        stopped = self._resumption is not None and self._resumption.stopped
        return stopped or self.state.global_step >= self.state.max_steps

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch, or what was left of it."""
        steps = epoch.windows_done // self.args.gradient_accumulation_steps
        going_on = self._resumption is not None and not self._restored
        self._place.enter(epoch.number, steps if epoch.number == epoch.first else 0)
        if not going_on or self._resumption is None:
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
            data = epoch.loader.dataset
            if isinstance(data, DealtStream):
                data.done = epoch.windows_done
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
        self.load_shared_state(shared["own"])
        if resumption.rank is not None:
            self.running_loss.copy_(resumption.rank["loss"])
            self.load_rank_state(resumption.rank["own"])
        for callback, kept in self._kept_by_callbacks(shared["callbacks"]):
            callback.load_state_dict(kept)
        for callback, kept in self._exported(self.state.stateful_callbacks):
            for name, value in kept.get("attributes", {}).items():
                setattr(callback, name, value)
        self._restored = True

    def _restore_random(self) -> None:
        """Go on drawing random numbers where the run stopped; once, just before the first step."""
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
            load_weights(self._plain(target), folder, listed.files)

    def load_best_weights(self) -> None:
        """Load the weights of the best checkpoint, verified."""
        best = Path(str(self.state.best_model_checkpoint))
        with phase(f"loading the best model, {best.name}"):
            manifest = ranks.first_does(lambda: verify(best, step=step_of(best)))
            load_weights(self._plain(self.model), best, manifest.files)

    def load_optimizer_state(self, folder: Path) -> None:
        """Load the states of optimizer and learning rate, where a run goes on."""
        if self._resumption is None:
            return
        with phase(f"loading the optimizer of {folder}"):
            saved = check_optimizer(read_tree(folder, OPTIMIZER), folder)
            mine = self.engine.state_to_load(saved)
            load_named_state(self.optimizer, self._plain(self.model), mine)
        self.lr_scheduler.load_state_dict(self._resumption.shared["scheduler"])

    def load_scaler_state(self) -> None:
        """Load the state of the gradient scaler, where there is one."""
        if self._resumption is not None and self._resumption.shared["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self._resumption.shared["scaler"])

    def evaluate_in_training(
        self, trial: Any, ignored: list[str] | None, *, at_start: bool
    ) -> dict[str, float]:
        """Evaluate; not at the start of a run that goes on, which did it when it started."""
        if at_start and self._resumption is not None:
            return {}
        return super().evaluate_in_training(trial, ignored, at_start=at_start)

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
        try:
            with phase(f"saving {target.name}"):
                patiently(partial(self._write, target))
            keep = [best] if self.state.best_global_step else []
            ranks.first_does(partial(rotate, target, self.args.save_total_limit, keep=keep))
        except OSError as error:
            raise not_saved(target, error) from error
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self.request_push(target)

    def _write(self, target: Path) -> None:
        staged = staging(target)
        try:
            ranks.first_does(partial(begin, target))
            ranks.each_does(partial(self._write_parts, staged))
            ranks.first_does(partial(self._publish, target))
        except BaseException:
            if self.args.process_index == 0:
                discard(target)
            raise

    def _write_parts(self, staged: Path) -> None:
        """The files of this rank; it meets no other."""
        whole = not self.args.save_only_model
        if whole:
            own = {"random": random_state(self.args.device), "loss": self.running_loss}
            write_tree(staged, f"rank-{self.args.process_index}", {**own, "own": self.rank_state()})
        plain = self._plain(self.model)
        of_optimizer = named_state(self.optimizer, plain) if whole else {}
        mine = self.engine.state_for_saving(of_optimizer)
        if mine is None:
            return
        target = staged.with_name(f"checkpoint-{self.state.global_step}")
        refuse_non_finite(plain, self.optimizer if whole else None, target)
        self._write_model(staged)
        if whole:
            write_beside(staged, plain)
            write_tree(staged, OPTIMIZER, mine)
            write_tree(staged, SHARED, self._shared())
        self._write_trainer_state(staged)

    def _publish(self, target: Path) -> None:
        seal(
            staging(target),
            step=self.state.global_step,
            resumable=not self.args.save_only_model,
            fingerprint=self._this_experiment(),
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
            "callbacks": self._states_of_callbacks(),
            "streams": self.run_log.lengths(),
            "own": self.shared_state(),
        }

    def _write_trainer_state(self, staged: Path) -> None:
        kept: dict[str, Any] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                kept.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {
            name: states[0] if len(states) == 1 else states for name, states in kept.items()
        }
        write_state(self.state, staged / TRAINER_STATE)

    def _states_of_callbacks(self) -> dict[str, list[Any]]:
        """The states of callbacks that have one, by the names of their classes."""
        states: dict[str, list[Any]] = {}
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                states.setdefault(type(callback).__name__, []).append(callback.state_dict())
        return states

    def _kept_by_callbacks(self, kept: dict[str, list[Any]]) -> Iterator[tuple[Any, Any]]:
        """Callbacks beside their states; of those of one class in their order."""
        left = {name: list(states) for name, states in kept.items()}
        for callback in self.callback_handler.callbacks:
            states = left.get(type(callback).__name__)
            if states and hasattr(callback, "load_state_dict"):
                yield callback, states.pop(0)

    def _exported(self, kept: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """The same for callbacks with transformers' own way of keeping a state."""
        left = {n: list(s) if isinstance(s, list) else [s] for n, s in kept.items()}
        for callback in self.callback_handler.callbacks:
            states = left.get(type(callback).__name__)
            if states and isinstance(callback, ExportableState):
                yield callback, states.pop(0)

    def write_model_files(self, folder: Path | None, state_dict: Any) -> None:
        """Save the model; each of its files is there whole, or as it was before."""
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir) if folder is None else folder
        refuse_non_finite(self._plain(self.model), None, folder / WEIGHTS)
        # the folder is perhaps another run's by now
        with phase("saving the model"), locked(folder), filled(folder) as staged:
            self._write_model(staged, state_dict)
            other = INDEX if (staged / WEIGHTS).is_file() else WEIGHTS
            written = {path.name for path in staged.iterdir()}
        if written & {WEIGHTS, INDEX}:
            # what an earlier run left there, which loaders might prefer to what was just saved
            (folder / other).unlink(missing_ok=True)

    def _write_model(self, folder: Path, state_dict: Any = None) -> None:
        """The model as transformers and PEFT read it, its tokenizer, and the options as JSON.

        transformers would add a pickle of the options, which nothing needs in order to load.
        """
        model = self._plain(self.model)
        with without_bars(), plain_io_errors():
            if hasattr(model, "save_pretrained"):
                with generation_config_as_it_is(model, folder):
                    model.save_pretrained(str(folder), state_dict=state_dict)
            else:
                save_model(model, str(folder / WEIGHTS))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            self._write_options(folder)

    def _write_options(self, folder: Path) -> None:
        text = strict_json(Mask().of(self.args.to_dict()), indent=2, default=str)
        (folder / OPTIONS).write_text(f"{text}\n", encoding="utf-8")

    def try_saving(self) -> None:
        """Save everything but the weights once, and throw it away; before the first step.

        Raises:
            SetupError: CP518 for what cannot be saved.
        """
        model, tokenizer = self._plain(self.model), self.processing_class
        parts: dict[str, Callable[[Path], object]] = {"options": self._write_options}
        if hasattr(model, "config"):
            parts["model's configuration"] = partial(save_configs, model)
        if tokenizer is not None:
            parts["tokenizer"] = partial(save_and_reopen_tokenizer, tokenizer)
        parts["state of the callbacks"] = self._write_callbacks
        if self.args.should_save:
            with phase("trying to save everything but the weights"):
                try_saving(Path(self.args.output_dir), parts)

    def _write_callbacks(self, folder: Path) -> None:
        write_tree(folder, SHARED, {"callbacks": self._states_of_callbacks()})
        self._write_trainer_state(folder)

    def _plain(self, model: Any) -> Any:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _mean_loss(self) -> float:
        """The mean loss of a step, of all steps of the run."""
        return float(self.total_loss / max(self.state.global_step, 0.001))


def find_checkpoint(run: Path, wanted: str | Path | bool) -> tuple[Path, Manifest] | None:
    """The checkpoint that a run is to go on from, verified.

    Args:
        run: the run's folder.
        wanted: as ``ResumableTrainer.going_on`` takes it.

    Returns:
        None where "auto" finds none.

    Raises:
        ConfigError: CP103 where there is none, or the named one is no folder.
        SetupError: CP511 to CP514 for a named one that is not whole; CP512 where there are some
            but none is whole.
    """
    word = str(wanted).lower()
    folder = Path(str(wanted))
    if word in ("true", "latest", "auto"):
        found = last_good(run)
        if found is None and word != "auto":
            raise ConfigError(
                "CP103", f"resume_from_checkpoint: {run} holds no complete checkpoint."
            )
        return found
    if not folder.is_dir():
        raise ConfigError(
            "CP103",
            f"resume_from_checkpoint={wanted} is no checkpoint: it should be a folder, or "
            "'latest' or 'auto'.",
        )
    return folder, verify(folder, step=step_of(folder))


def patiently(work: Callable[[], Result]) -> Result:
    """Do something with a disk, again after a moment where its error is one that may pass."""
    for wait in WAITS:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            logger().warning("%s; trying again in %g seconds", error, wait)
            time.sleep(wait)
    return work()


def not_saved(target: Path, error: OSError) -> SetupError:
    """The error of a checkpoint that could not be written."""
    reason = error.strerror or str(error)
    left = [path for path in finished(target.parent) if path != target]
    last = f"The last one is {left[-1]}." if left else "There is none before it."
    return SetupError("CP515", f"{target} could not be saved: {reason}. {last}")
