"""CPOTrainer: where data, forward and losses become a transformers ``Trainer``.

``compute_loss`` reads like the flow. Around it, four things transformers does not do: a step's
denominators are known before its first backward (``get_batch_samples``), so that a step is a
function of its set of pairs; a step that does not fit in memory is cut and done again
(``training_step``); a non-finite step never reaches the weights (``step_norm``); and
evaluation adds up sums instead of averaging batches (``evaluation_loop``).

Not here: the arithmetic of any of it, saving and resuming (``resumable``), what samples are like
(``evaluation``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction, has_length, set_seed

from counterpoint import ranks
from counterpoint.alarms.effect import stopped_error
from counterpoint.checkpoint.adapted import BASE, adapter_settings, identity
from counterpoint.checkpoint.experiment import experiment
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.config import CPOConfig
from counterpoint.console.phases import phase
from counterpoint.data.batching import PairLoader
from counterpoint.doctor.of_unused import Rest, in_a_line, unused
from counterpoint.engine.lost_rank import lost_rank_named
from counterpoint.errors import DataError
from counterpoint.log import logger
from counterpoint.losses.objective import Objective
from counterpoint.models.family import family_of
from counterpoint.models.precision import Rounding, stochastic_adamw, warn_of_rounding
from counterpoint.models.preparing import (
    balancing_weight,
    embedding_rows,
    prepare_model,
    prepare_tokenizer,
)
from counterpoint.models.weights import WeightsPolicy
from counterpoint.monitor.callback import Monitor
from counterpoint.monitor.pace import Pace
from counterpoint.planner.fitting import fitting_budget
from counterpoint.records import LossTerms, PairBatch, TokenPair
from counterpoint.report.about import base_name, hub_datasets
from counterpoint.runlog import MOVEMENT, RunLog, check_writable
from counterpoint.step.assembly import Assembly
from counterpoint.step.calibration import calibrate
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.finite import refuse_vanishing
from counterpoint.step.loss import StepDenominators, loss_of
from counterpoint.step.replay.file import Settings
from counterpoint.step.replay.recorder import StepRecorder
from counterpoint.step.runner import StepRunner
from counterpoint.step.share import Share
from counterpoint.trainer.admission import (
    check_stream,
    checked_args,
    loaded,
    own_tokenizer,
    then_ready,
)
from counterpoint.trainer.best import check_best_metric, check_evaluated
from counterpoint.trainer.evaluation import EvaluatingTrainer
from counterpoint.trainer.events import StepEvents
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.hooks import ATTRIBUTES, check_attributes, check_hooks
from counterpoint.trainer.recording import Beginning, SamplesBefore, announce
from counterpoint.trainer.second_sets import SecondSets
from counterpoint.trainer.transformers_seams import Epoch


class CPOTrainer(EvaluatingTrainer):
    """Trains a causal language model on preference pairs; TRL's ``CPOTrainer``, exact.

    Args:
        model: a causal language model, a PEFT model, or the name or folder of one.
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

    _rounding: Rounding | None = None
    _loss_before_step: Tensor
    examined = False
    """Whether the doctor has spoken of the options already."""
    # what the model was before it trained, and which model that is
    _identity: Fingerprint = MappingProxyType({})
    _identified: nn.Module | None = None

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
        model = loaded(model, args, WeightsPolicy.of(args, adapter=peft_config is not None))
        if processing_class is None and model is not None:
            processing_class = own_tokenizer(model, args)
        tokenizer = prepare_tokenizer(processing_class)
        ready = partial(prepare_model, args=args, tokenizer=tokenizer, peft_config=peft_config)
        self.objective = Objective(
            loss_type=args.loss_type,
            beta=args.beta,
            gamma=args.gamma,
            alpha=args.alpha,
            label_smoothing=args.label_smoothing,
            cpo_alpha=args.nll_weight,
            nll_reduction=args.nll_reduction,
        )
        self._feed = Feed(args, tokenizer)
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
        super().__init__(
            model=prepared_model,
            args=args,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            processing_class=tokenizer,
            model_init=None if model_init is None else then_ready(model_init, ready),
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

    def _made_runner(self) -> StepRunner:
        args = self.args
        loss = loss_of(self.objective, self._balancing_weight, self.constraints)
        settings = Settings(
            autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else "",
            device=args.device.type,
            checkpointing=bool(args.gradient_checkpointing),
            dropout=not args.disable_dropout,
            ranks=ranks.count(),
            balancing_weight=self._balancing_weight,
        )
        folder = Path(args.output_dir)
        return StepRunner(
            loss,
            self.constraints,
            self.engine,
            self._assembly,
            device=args.device,
            recorder=StepRecorder(loss, self.constraints, settings, folder, args.device),
            most_tokens=args.max_micro_batch_tokens,
            lowered=self._budget_lowered,
        )

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
        own.append(self._pace)  # after those that evaluate, whose time is not a step's
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

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[TokenPair]], num_batches: int, device: torch.device
    ) -> tuple[list[Share], StepDenominators | None]:
        """This rank's share of a step, and the denominators of the step's loss over all ranks.

        transformers counts windows of accumulation; the pairs of all of them are cut anew, and
        the last window holds the whole share.
        """
        windows = list(islice(epoch_iterator, num_batches))
        if not windows:
            self._restore_random()
            return [], None
        self._loss_before_step = self.running_loss.clone()
        pairs = [pair for window in windows for pair in window]
        self._pace.count(pairs)
        pairs += self._second_sets.of_step(self.state.global_step)
        share = self.runner.share(pairs, self.micro_batch_size)
        self._restore_random()  # after the proofs of a run's first pairs, before all that it draws
        empty = [self.runner.share([], 1) for _ in windows[1:]]
        return [*empty, share], self.runner.begin(share)

    def training_step(
        self,
        model: nn.Module,
        inputs: Share,
        num_items_in_batch: StepDenominators | None = None,
    ) -> Float[Tensor, ""]:
        """Forward and backward of a share's micro-batches; the step's loss, on this rank.

        Raises:
            SetupError: CP505 for a pair that does not fit in memory; see ``step.share``.
        """
        loss = self.runner.run(
            model,
            inputs,
            num_items_in_batch,
            backward=super().training_step,
            forward=self._loss_alone,
        )
        if not ranks.alone() and self.optimizer.state:
            inputs.prove()  # not before the optimizer has taken its memory, in its first step
        return loss

    def _loss_alone(
        self, model: nn.Module, batch: PairBatch, step: StepDenominators | None
    ) -> Tensor:
        loss = self.compute_loss(model, batch, num_items_in_batch=step)
        return loss if isinstance(loss, Tensor) else loss[0]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: StepDenominators | None = None,
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], LossTerms]:
        """This micro-batch's share of its step's loss, times what its gradient is divided by.

        Args:
            model: as wrapped for training.
            inputs: the micro-batch.
            return_outputs: return the loss terms of each pair as well.
            num_items_in_batch: the step's denominators; None takes the batch for a whole step.

        Returns:
            The share times ``Engine.loss_factor``: DDP takes the mean over ranks.
        """
        found = self.runner.micro_batch(model, inputs, num_items_in_batch)
        return (found.loss, found.terms) if return_outputs else found.loss

    def _assembly(self) -> Assembly:
        """Head and layout of the model; a new model (``model_init``) has its own."""
        if self._assembled is None or self._assembled.model is not self.model:
            self._assembled = Assembly(
                self.model,
                self.args,
                vocab_size=embedding_rows(self.model),
                # old models warn of the pad token where no mask is given
                pad_id=0 if self.processing_class.pad_token_id else 1,
                engine=self.engine,
                family=family_of(self.model.config),
                balanced=self._balancing_weight > 0,
            )
            self._assembled.load_state_dict(self._known_proofs)
        return self._assembled

    def step_norm(self, model: nn.Module, norm: Any) -> Any:
        """The norm of the step's gradient; the last moment before the weights move."""
        norm = super().step_norm(model, norm)
        has_scaler = self.accelerator.scaler is not None
        problem = self.runner.judge(None if has_scaler else norm)
        if problem is None:
            return norm
        step = self.state.global_step + 1
        error = self.runner.throw_away(problem, step, self.model, self.args.alpha)
        if self.args.nonfinite == "raise":
            raise error
        self.running_loss.copy_(self._loss_before_step)
        self.skipped_steps += 1
        logger().warning("skipped: %s", error)
        return None

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch; before the first of a run, the initial policy is measured."""
        if not self.is_resumed and epoch.number == 0:
            self._calibrate()
        super().train_epoch(epoch)

    def _calibrate(self) -> None:
        if not self.constraints.all:
            return
        self.model.eval()
        few = self._feed.spread(self.train_dataset, self.args.constraint_calibration)
        few += self._second_sets.initial(self.args.constraint_calibration)
        with torch.no_grad():
            calibrate(self.runner, self.args.eval_batch_size, few, self._sets())
        for line in self.constraints.formula().splitlines():
            logger().info("%s", line)
        self._describe()

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
            announce(self._formula(), self.args, self.args.world_size)
            for counts in self._feed.counts().values():
                if counts.rows:
                    logger().info("%s", counts.summary())
            planned = checkpoint is not None or self.runner.budget.tokens is not None
            if not planned and self.train_dataset is not None:
                with phase("planning micro-batches that fit in memory"):
                    self.runner.budget.tokens = fitting_budget(
                        self.model, self.args, self.train_dataset
                    )
            self._watch, self._ending, self._stopped_by = None, None, None
            self.constraints.restart(anew=checkpoint is None)
            self._say_unused(resumes=checkpoint is not None)
            ranks.each_does(self.try_saving)
            self._describe()
            with self.recorded():
                return self._trained(checkpoint, *args, **kwargs)

    def _say_unused(self, *, resumes: bool) -> None:
        """Name the options that can do nothing in this run; the doctor's words are not repeated."""
        known = Rest(self.eval_dataset is not None, streams=not has_length(self.train_dataset))
        optimizer, schedule = (one is not None for one in self._handed)
        rest = replace(known, resumes=resumes, own_optimizer=optimizer, own_schedule=schedule)
        said = unused(self.args, known) if self.examined else {}
        found = {name: why for name, why in unused(self.args, rest).items() if name not in said}
        if found and self.is_world_process_zero():
            logger().warning("%s", in_a_line(self.args, found))

    def _trained(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> Any:
        with lost_rank_named(self.args.output_dir):
            output = super().train(checkpoint, *args, **kwargs)
            # a stream's counts are known only now, and what other ranks found to fit
            for budget in (self.runner.budget, self.runner.eval_budget):
                budget.agree(self.args.device)
        if self._stopped_by is not None:
            raise stopped_error(self._stopped_by, self.state.global_step, self.args.output_dir)
        return output._replace(training_loss=self._mean_loss())

    def _take_identity(self) -> None:
        """What the model is, before anything trains; every rank takes rank 0's word for it."""
        if self._identified is self.model:
            return
        plain, dropout = self.accelerator.unwrap_model(self.model), not self.args.disable_dropout
        self._identity = ranks.first_does(partial(identity, plain, dropout=dropout))
        self._identified = self.model

    def base_name(self) -> str:
        """The name of the model that training begins with; "" for one made in memory."""
        return base_name(self.model)

    def fingerprint(self) -> Fingerprint:
        """What makes this experiment this one; ``resume_anyway`` says what it is for."""
        digests = {name: self._feed.digest(pairs) for name, pairs in self._sets().items()}
        digests |= self._second_sets.digests()
        return experiment(
            self.args,
            self.objective,
            self.accelerator.unwrap_model(self.model),
            digests,
            self.steps_in_all(),
            identity=self._identity,
            balancing=self._balancing_weight,
            scheduled=self._handed[1] is None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Skipped steps, what was proved, where the streams are, the multipliers."""
        proofs = self._known_proofs if self._assembled is None else self._assembled.state_dict()
        return {
            "model": self._began_with(),
            "skipped_steps": self.skipped_steps,
            "proofs": proofs,
            "feed": self._feed.state_dict(),
            "constraints": self.constraints.state_dict() if self.constraints.all else None,
        }

    def before_loading(self) -> None:
        """The model is still the one that a run began with, which a constraint may need."""
        self.constraints.remember(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with them."""
        self.skipped_steps = state["skipped_steps"]
        # up to 0.4 the layout alone
        self._known_proofs = state["proofs"] if "proofs" in state else {"layout": state["layout"]}
        if self._assembled is not None:
            self._assembled.load_state_dict(self._known_proofs)
        self._feed.load_state_dict(state["feed"], within_pass=self._place.steps > 0)
        if state.get("constraints"):
            self.constraints.load_state_dict(state["constraints"], anyway=self.args.resume_anyway)
            self._describe()

    def rank_state_dict(self) -> dict[str, Any]:
        """The sums since the last log line, and what was learnt of this rank's memory."""
        return self.runner.state_dict()

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with them."""
        self.runner.load_state_dict(state)

    def _formula(self) -> str:
        """What is minimised, and subject to what."""
        return "\n".join(filter(None, (self.objective.formula(), self.constraints.formula())))

    def run_facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the run, beside its options and where it runs."""
        runner = self.runner
        return {
            "objective": self._formula(),
            "model": self._began_with(),
            "adapter": adapter_settings(self.accelerator.unwrap_model(self.model)) or None,
            "base": self._identity.get(BASE),
            "step_pairs": self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
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
