"""What a run writes of itself: log lines, alarms, ``run.json``, the card beside its weights.

Not here: what a log line is made of (``metrics``), what an alarm is (``alarms``), and the files
(``runlog``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import has_length

from counterpoint import ranks
from counterpoint.alarms.effect import agreed, alarm_facts, ends_a_run
from counterpoint.alarms.telling import say_alarm
from counterpoint.alarms.watch import Watch
from counterpoint.checkpoint.adapted import BASE, adapter_settings
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.checkpoint.saved_options import without_secrets
from counterpoint.console.display import TrainingDisplay, watch_alone
from counterpoint.doctor.of_unused import Rest, in_a_line, unused
from counterpoint.engine.stops import names_stops
from counterpoint.log import logger
from counterpoint.losses.objective import Objective
from counterpoint.metrics import means
from counterpoint.models.merged_base import origin_facts
from counterpoint.models.precision import Rounding
from counterpoint.monitor.pace import COUNTED, Pace
from counterpoint.provenance.environment import environment
from counterpoint.report.about import about_model
from counterpoint.report.card import CARD, may_write, write_card
from counterpoint.runlog import ALARMS, METRICS, Alarm
from counterpoint.step.assembly import Assembly
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.runner import StepRunner
from counterpoint.step.share import Share
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.recording import told_to_its_end
from counterpoint.trainer.resumable import ResumableTrainer
from counterpoint.trainer.transformers_seams import Moment


class JournalTrainer(ResumableTrainer):
    """What ``CPOTrainer`` inherits of keeping a journal; it says what there is to write."""

    runner: StepRunner
    constraints: ConstraintSet
    skipped_steps: int
    # of the running training; ``train`` begins them anew
    _watch: Watch | None = None
    _ending: Alarm | None = None
    _stopped_by: Alarm | None = None
    _recorded = False
    given: Mapping[str, Any] | None = None
    """The options as the command was given them, without secrets; None in a script."""
    _environment: dict[str, Any] | None = None
    _base_name: str | None = None
    _hub_datasets: Any
    _pace: Pace
    objective: Objective
    _feed: Feed
    _assembled: Assembly | None
    _balancing_weight: float
    _rounding: Rounding | None = None
    _identity: Fingerprint
    _handed: tuple[Any, Any]
    examined = False
    """Whether the doctor has spoken of the options already."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last line, and write the line to the run log."""
        if "train_loss" in logs:  # which transformers divides by the steps of this call alone
            logs["train_loss"] = self._mean_loss()
        if "loss" in logs:
            del logs["loss"]  # transformers counts skipped steps; ours are of applied ones
            sums = self.runner.sums.read(self._pace.counts(), self.args.device)
            pace = self._pace.metrics({name: sums.pop(name)[0] for name in COUNTED})
            found = means(sums)
            logs = {name: found.pop(name) for name in ("loss",) if name in found} | logs | found
            logs |= pace
            logs |= self.constraints.metrics()
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)
        self.run_log.append(METRICS, self.state.log_history[-1])
        if self.is_in_train:
            if self._watch is None:  # a resumed run reads its old lines again
                self._watch = Watch(alarm_facts(self.args, self.state.max_steps))
            for alarm in self._watch.catch_up(self.state.log_history):
                self.raise_alarm(alarm)

    def raise_alarm(self, alarm: Alarm) -> None:
        """Show an alarm, write it to the run log, and end the run if ``on_alarm`` says so.

        Args:
            alarm: its code is in docs/diagnoses.md. It is to be raised on the main process, or
                on all; the run ends on all of them, after this step.
        """
        self._write_alarm(alarm)
        if self.is_in_train and ends_a_run(alarm, self.args) and self._ending is None:
            self._ending = alarm

    def _write_alarm(self, alarm: Alarm) -> None:
        if self.is_world_process_zero():
            say_alarm(alarm, self.args.report_to)
        self.run_log.append(ALARMS, alarm)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TrainingDisplay):
                callback.show_alarm(alarm)

    def add_callback(self, callback: Any) -> None:
        """Add a callback; a ``TrainingDisplay`` takes the place of transformers' own display."""
        super().add_callback(callback)
        watch_alone(self.callback_handler)

    def report_and_save(self, moment: Moment) -> None:
        """Log, evaluate, save; then end a run that an alarm has ended, with a checkpoint."""
        control = self.control
        reads = (control.should_log, control.should_evaluate, control.should_save)
        if any(reads) or control.should_training_stop:
            self.runner.updates.settle()  # nothing is said, chosen or kept of weights that are lost
        super().report_and_save(moment)
        if self.args.on_alarm == "warn":
            return
        own = self._ending
        self._ending = agreed(own, self.args.device)
        if self._ending is None:
            return
        if own is None:  # heard elsewhere
            self._write_alarm(self._ending)
        self.save_now(moment.model, moment.trial)
        self.control.should_training_stop = True
        self._stopped_by = self._ending

    def recorded(self) -> AbstractContextManager[None]:
        """Within it a training may be followed by more that belongs to it, such as saving.

        ``run.json`` tells how it ends: finished, stopped before its last step, interrupted, or
        failed with which error. ``train`` alone does the same.
        """
        if self._recorded:
            return nullcontext()
        return self._recording()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        self._recorded = True
        with ExitStack() as stack:
            stack.callback(setattr, self, "_recorded", False)
            stack.enter_context(told_to_its_end(self.run_log, lambda: self.state))
            stack.callback(self._describe_again)
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrainingDisplay):
                    stack.enter_context(callback)
            yield

    def floating_point_ops(self, inputs: Share) -> int:
        """Six operations a parameter and input token, embeddings left out, as transformers."""
        tokens = sum(batch.cost for batch in inputs)
        model: Any = self.model
        return 6 * tokens * int(model.num_parameters(exclude_embeddings=True))

    def count_input_tokens(self, inputs: Share) -> None:
        """Add what ``include_num_input_tokens_seen`` asks for to the state."""
        wanted = self.args.include_num_input_tokens_seen
        if wanted == "no":
            return
        seen = torch.zeros((), dtype=torch.long, device=self.args.device)
        for batch in inputs:
            seen += batch.attention_mask.sum() if wanted == "non_padding" else batch.cost
        self.state.num_input_tokens_seen += int(ranks.add_up(seen))

    @names_stops
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and, beside the weights, a card of it (README.md)."""
        folder = Path(output_dir or self.args.output_dir)
        # asked before: PEFT writes a card of its own, which ours replaces; a user's own stays
        ours = may_write(folder / CARD)
        super().save_model(output_dir, _internal_call)
        if ours and self.is_world_process_zero():
            self._write_card(folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002 - transformers' name
        tags: str | list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write the card of ``save_model`` anew, with what a push to the hub adds."""
        folder = Path(self.args.output_dir)
        if self.is_world_process_zero() and may_write(folder / CARD):
            more = [tags] if isinstance(tags, str) else list(tags or ())
            self._write_card(folder, tags=more, language=language or "", license_=license or "")

    def _write_card(self, folder: Path, **more: Any) -> None:
        run_folder = self.run_log.folder
        # a checkpoint lies in the run's folder, perhaps under a name that it will not keep
        within = run_folder.resolve() in folder.resolve().parents
        named = run_folder if within else folder
        about = about_model(self.model, named, self._hub_datasets, base=self._began_with(), **more)
        write_card(folder, run_folder, about)

    def push_checkpoint(self, folder: str) -> None:
        """Send a checkpoint to the hub."""
        # transformers pickles the options into what it uploads
        with without_secrets(self.args):
            super().push_checkpoint(folder)

    def _began_with(self) -> str:
        return self.base_name() if self._base_name is None else self._base_name

    def _describe_again(self) -> None:
        if self.run_log.described:  # what is refused before it begins leaves a folder as it was
            self._describe()

    def _budget_lowered(self) -> None:
        if self.is_in_train:  # an evaluation alone leaves the files of a run as they are
            self._describe()

    def _describe(self) -> None:
        if not self.is_world_process_zero():
            return
        if self._environment is None:
            self._environment = environment()
        self.run_log.describe(
            {
                **self.run_facts(),
                "options": self.args.to_dict(),
                "environment": self._environment,
                "changed": list(self.args.changed),
                "given": self.given,
            }
        )

    def _say_unused(self, *, resumes: bool) -> None:
        """Name the options that can do nothing in this run; the doctor's words are not repeated."""
        known = Rest(self.eval_dataset is not None, streams=not has_length(self.train_dataset))
        optimizer, schedule = (one is not None for one in self._handed)
        rest = replace(known, resumes=resumes, own_optimizer=optimizer, own_schedule=schedule)
        said = unused(self.args, known) if self.examined else {}
        found = {name: why for name, why in unused(self.args, rest).items() if name not in said}
        if found and self.is_world_process_zero():
            logger().warning("%s", in_a_line(self.args, found))

    def _formula(self) -> str:
        """What is minimised, and subject to what."""
        return "\n".join(filter(None, (self.objective.formula(), self.constraints.formula())))

    def run_facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the run, beside its options and where it runs."""
        runner = self.runner
        return {
            "objective": self._formula(),
            "model": self._began_with(),
            **origin_facts(self.accelerator.unwrap_model(self.model)),
            "adapter": adapter_settings(self.accelerator.unwrap_model(self.model)) or None,
            "base": self._identity.get(BASE),
            "step_pairs": self.args.step_pairs,
            "segments": [one.facts() for one in self._segments],
            "layout": None if self._assembled is None else self._assembled.layout,
            "micro_batch_tokens": {
                "train": runner.budget.tokens,
                "eval": runner.eval_budget.tokens,
            },
            "balancing_weight": self._balancing_weight,
            "skipped_steps": self.skipped_steps,
            "rounding": None if self._rounding is None else asdict(self._rounding),
            "data": {name: counts.as_dict() for name, counts in self._feed.counts().items()},
            **self.constraints.facts(),
        }
