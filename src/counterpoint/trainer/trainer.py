"""CPOTrainer: where data, forward and losses become a transformers ``Trainer``.

What it inherits, a file each: ``stepping`` (a step), ``evaluation``, ``experiment`` (which it is),
``journal`` (what is written), ``resumable`` and ``saving`` (checkpoints), ``transformers_seams``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction, set_seed

from counterpoint import ranks
from counterpoint.alarms.effect import stopped_error
from counterpoint.config import CPOConfig
from counterpoint.console.phases import phase
from counterpoint.data.batching import PairLoader
from counterpoint.engine.stops import names_stops
from counterpoint.errors import DataError
from counterpoint.log import logger
from counterpoint.losses.objective import Objective
from counterpoint.model_seams import quantized_may_pass
from counterpoint.models.made_later import MadeLater
from counterpoint.models.precision import stochastic_adamw, warn_of_rounding
from counterpoint.models.preparing import (
    balancing_weight,
    embedding_rows,
    encoder_of,
    prepare_model,
    prepare_tokenizer,
)
from counterpoint.models.reference import check_reference
from counterpoint.monitor.callback import Monitor
from counterpoint.monitor.pace import Pace
from counterpoint.monitor.patience import patience_of
from counterpoint.planner.fitting import fitting_budget
from counterpoint.report.about import hub_datasets
from counterpoint.runlog import MOVEMENT, RunLog, check_writable
from counterpoint.step.assembly import Assembly
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.finite import refuse_vanishing
from counterpoint.trainer.admission import check_stream, checked_args, loaded, own_tokenizer
from counterpoint.trainer.best import check_best_metric, check_evaluated
from counterpoint.trainer.events import StepEvents
from counterpoint.trainer.experiment import ExperimentTrainer
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.hooks import ATTRIBUTES, check_attributes, check_hooks
from counterpoint.trainer.recording import Beginning, SamplesBefore, announce
from counterpoint.trainer.second_sets import SecondSets


class CPOTrainer(ExperimentTrainer):
    """Trains a language model on preference pairs; TRL's ``CPOTrainer``, exact.

    Args:
        model: a decoder or an encoder-decoder, a PEFT model, or the name or folder of one.
        args: the options; None for the defaults with output_dir "tmp_trainer".
        data_collator: refused; a batch's layout is Counterpoint's own.
        train_dataset: preference rows in any supported shape (docs/data.md): ``Dataset``,
            ``IterableDataset`` (needs max_steps) or a list of dicts. None to evaluate only.
        eval_dataset: likewise, or a dict of named sets with separate metrics.
        processing_class: the tokenizer; None loads the model's own.
        model_init: makes a model, in place of ``model``.
        callbacks: added to transformers' own.
        optimizers: optimizer and learning-rate scheduler, to use in place of the defaults.
        preprocess_logits_for_metrics: refused; logits are never kept.
        peft_config: train an adapter of this configuration instead of all weights.
        compute_metrics: called with ``EvalPrediction(predictions, label_ids)`` after an
            evaluation: rewards ``[pairs, 2]``, chosen first, and zeros, the index of chosen.
        constraint_datasets: preference rows of constraints that have a set of their own, by the
            constraint's name; "NAME/eval": those it is evaluated on.

    Raises:
        ConfigError: CP1xx for options that cannot be meant.
        DataError: CP2xx for rows that are not pairs.
        ModelError: CP3xx for a model or tokenizer that cannot be trained.
        SetupError: CP5xx for a folder, package or launch that will not do.
    """

    def __init__(  # noqa: PLR0913 - TRL's constructor, in TRL's order
        self,
        model: nn.Module | str | None = None,
        args: CPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        constraint_datasets: Mapping[str, Any] | None = None,
    ) -> None:
        """Check and prepare everything; nothing is written before all of it is right."""
        args = self._checked(
            args, eval_dataset, data_collator, preprocess_logits_for_metrics, optimizers[0]
        )
        check_writable(args.output_dir)
        set_seed(args.seed)  # an adapter starts from random weights
        model = loaded(model, args, adapter=peft_config is not None)
        if processing_class is None and model is not None:
            processing_class = own_tokenizer(model, args)
        tokenizer = prepare_tokenizer(processing_class)
        ready = partial(
            prepare_model,
            args=args,
            tokenizer=tokenizer,
            peft_config=peft_config,
            trains=train_dataset is not None,
        )
        self.objective = Objective.of(args)
        later = None if model_init is None else MadeLater(model_init)
        kind = model if later is None else later.first
        self._feed = Feed(args, encoder_of(kind, tokenizer, args))
        check_reference(args, kind, tokenizer)
        self._hub_datasets, self._handed = hub_datasets(train_dataset), optimizers
        prepared_model = None if model is None else ready(model)
        train_pairs = self._feed.train_pairs(train_dataset)
        check_stream(train_pairs, args)
        eval_pairs = self._feed.pairs(eval_dataset, "eval")
        self._second_sets = SecondSets(args, self._feed, constraint_datasets)
        if prepared_model is not None:
            balancing_weight(prepared_model, args)
            every = {"train": train_pairs, "eval": eval_pairs, **self._second_sets.prepared()}
            self._feed.check_ids(every, embedding_rows(prepared_model))
        self.run_log = RunLog(args.output_dir, writes=args.process_index == 0)
        with quantized_may_pass(prepared_model, trains=train_dataset is not None):
            super().__init__(
                model=prepared_model,
                args=args,
                train_dataset=train_pairs,
                eval_dataset=eval_pairs,
                processing_class=tokenizer,
                model_init=None if later is None else later.ready(ready),
                callbacks=[Beginning(self.run_log), *(callbacks or [])],
                optimizers=optimizers,
                compute_metrics=compute_metrics,
            )
        self._assembled: Assembly | None = None
        self._known_proofs: dict[str, Any] = {}
        self.skipped_steps = 0
        self._balancing_weight = balancing_weight(self.model, args)
        self._pace = Pace(args.device)
        self.constraints = ConstraintSet(
            args.constrained_by,
            self.objective,
            cpo_alpha=args.cpo_alpha,
            normalized=args.constraint_normalization,
            raise_alarm=self.raise_alarm,
        )
        self.runner = self._made_runner()
        self.monitor = self._made_monitor()
        self._add_watchers()

    @property
    def balances(self) -> bool:
        """Whether the model has experts, so that how they are balanced is measured."""
        return bool(self._balancing_weight)

    def _checked(self, args: CPOConfig | None, eval_dataset: Any, *refused: Any) -> CPOConfig:
        """What can be refused before anything slow is loaded."""
        check_hooks(self, CPOTrainer)
        checked = checked_args(args, *refused)
        check_evaluated(checked, eval_dataset)
        return checked

    def _check_replaced(self) -> None:
        """Refuse what was replaced and is never called, also after the trainer was made."""
        check_hooks(self, CPOTrainer)
        check_attributes(self, self._made_with)

    def _made_monitor(self) -> Monitor | None:
        if not self.args.monitor_steps:
            return None
        write = partial(self.run_log.append, MOVEMENT)
        return Monitor(self.args.monitor_steps, write, self.raise_alarm, self.engine)

    def _add_watchers(self) -> None:
        """The callbacks that are the trainer's own, and what a user's script may not replace."""
        self._made_with = {name: getattr(self, name, None) for name in ATTRIBUTES}
        # before those that act on an update
        own: list[Any] = [
            StepEvents(self.runner, lambda: self.accelerator.optimizer_step_was_skipped)
        ]
        if self.monitor is not None:
            own.append(self.monitor)
        if self.args.generate_during_eval and self.eval_dataset is not None:
            own.append(SamplesBefore(self._write_samples))
        own += [*patience_of(self.args), self._pace]  # it last: evaluating is no step's time
        for callback in own:
            self.add_callback(callback)

    def get_train_dataloader(self) -> PairLoader:
        """The training pairs, dealt to steps, ranks and micro-batches."""
        if self.train_dataset is None:
            raise DataError("CP209", "there is no train_dataset to train on.")
        return self._loader(self.train_dataset, "train", train=True)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: CPOConfig, model: Any = None) -> tuple[Any, Any]:
        """What ``optim`` names, or the AdamW of ``stochastic_rounding``."""
        if args.stochastic_rounding:
            return stochastic_adamw(args)
        found: tuple[Any, Any] = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return found

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer unless there is one; warns if it cannot move the weights."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        refuse_vanishing(optimizer, self.args.max_grad_norm)
        self._rounding = warn_of_rounding(optimizer)
        if self._rounding:
            self._describe()
        return optimizer

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see ``transformers.Trainer.train``. Writes ``run.json`` first.

        Args:
            resume_from_checkpoint: a checkpoint to resume from; see ``resuming``.
            args: transformers' further arguments.
            kwargs: the same by name.
        """
        self._check_replaced()
        check_best_metric(self)
        self.skipped_steps = 0
        self._take_identity()
        with self.resuming(resume_from_checkpoint) as checkpoint:
            self._base_name = self.base_name() if self.base_then is None else self.base_then
            announce(self._formula(), self.args, self.args.world_size, examined=self.examined)
            for counts in self._feed.counts().values():
                if counts.rows:
                    logger().info("%s", counts.summary())
            planned = checkpoint is not None or self.runner.budget.tokens is not None
            if not planned and self.train_dataset is not None:
                with phase("planning micro-batches that fit in memory"):
                    pairs, encoder = self.train_dataset, self._feed.encoder
                    found = fitting_budget(self.model, self.args, pairs, encoder)
                self.runner.budget.tokens = found
            self._watch, self._ending, self._stopped_by = None, None, None
            self.constraints.restart(anew=checkpoint is None)
            self._feed.references.restart(anew=checkpoint is None)
            self._say_unused(resumes=checkpoint is not None)
            ranks.each_does(self.try_saving)
            self._describe()
            with self.recorded():
                return self._trained(checkpoint, *args, **kwargs)

    @names_stops
    def _trained(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> Any:
        output = super().train(checkpoint, *args, **kwargs)
        # a stream's counts are known only now, and what other ranks found to fit
        for budget in self.runner.budgets:
            budget.agree(self.args.device)
        if self._stopped_by is not None:
            raise stopped_error(self._stopped_by, self.state.global_step, self.args.output_dir)
        return output._replace(training_loss=self._mean_loss())
