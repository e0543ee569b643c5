"""CPOTrainer: where data, forward and losses become a transformers ``Trainer``.

``compute_loss`` reads like the flow. Around it, four things transformers does not do: a step's
denominators are known before its first backward (``get_batch_samples``), so that a step is a
function of its set of pairs; a step that does not fit in memory is cut and done again
(``training_step``); a non-finite step never reaches the weights (``step_norm``); and
evaluation adds up sums instead of averaging batches (``evaluation_loop``).

Not here: the arithmetic of any of it, saving and going on (``resumable``), what samples are like
(``evaluation``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, has_length, set_seed

from counterpoint import ranks
from counterpoint.alarms.effect import agreed, alarm_facts, ends_a_run, in_words, stopped_error
from counterpoint.alarms.of_samples import degenerate_in_run
from counterpoint.alarms.watch import Watch
from counterpoint.checkpoint.adapted import BASE, adapter_settings, identity
from counterpoint.checkpoint.experiment import experiment
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.checkpoint.saved_options import without_secrets
from counterpoint.config import CPOConfig
from counterpoint.console.display import TrainingDisplay, evaluating, watch_alone
from counterpoint.console.phases import allow_bars, phase
from counterpoint.data.batching import PairLoader
from counterpoint.doctor.of_unused import Rest, in_a_line, unused
from counterpoint.errors import ConfigError, DataError, ModelError, SetupError
from counterpoint.evaluation.preferences import accuracy_interval
from counterpoint.evaluation.samples import decodings, sample, sample_metrics
from counterpoint.forward.pair_forward import PairOutput, pair_forward, trunk_router_sums
from counterpoint.forward.router import RouterSums, add_sums, balancing_loss
from counterpoint.losses.objective import Objective, sum_totals
from counterpoint.masking import keep_secrets
from counterpoint.metric_names import PREFIX
from counterpoint.metrics import MetricSums, means, pair_means
from counterpoint.model_seams import loaded_from
from counterpoint.models.family import family_of
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from counterpoint.models.precision import Rounding, stochastic_adamw, warn_of_rounding
from counterpoint.models.preparing import (
    balancing_weight,
    embedding_rows,
    prepare_model,
    prepare_tokenizer,
)
from counterpoint.models.weights import WeightsPolicy
from counterpoint.monitor.callback import Monitor
from counterpoint.monitor.pace import COUNTED, Pace
from counterpoint.provenance.environment import environment
from counterpoint.records import LossTerms, PairBatch, StepTotals, TokenPair
from counterpoint.report.about import about_model, base_of, hub_datasets
from counterpoint.report.card import CARD, may_write, write_card
from counterpoint.runlog import (
    ALARMS,
    METRICS,
    MOVEMENT,
    SAMPLES,
    Alarm,
    RunLog,
    check_writable,
    constraint_metric,
    logger,
)
from counterpoint.step.assembly import Assembly
from counterpoint.step.calibration import Reader, calibrate, sums_of
from counterpoint.step.constraint_set import Constraints
from counterpoint.step.evaluation_pass import EvaluationPass
from counterpoint.step.finite import UpdateGuard, refuse_vanishing
from counterpoint.step.guard import StepGuard, non_finite_error
from counterpoint.step.replay.recompute import generator_states, restore_generators
from counterpoint.step.replay.recorder import StepRecorder
from counterpoint.step.share import Share, TokenBudget
from counterpoint.trainer.best import check_best_metric, check_evaluated, not_given, prefixed
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.fitting import fitting_budget
from counterpoint.trainer.hooks import ATTRIBUTES, check_attributes, check_hooks
from counterpoint.trainer.lost_rank import lost_rank_named
from counterpoint.trainer.recording import Beginning, SamplesBefore, announce, told_to_its_end
from counterpoint.trainer.resumable import ResumableTrainer
from counterpoint.trainer.second_sets import SecondSets
from counterpoint.trainer.trackers import check_trackers, hide_secrets
from counterpoint.trainer.transformers_seams import Epoch, Moment


@dataclass(frozen=True, slots=True)
class StepDenominators:
    """What a micro-batch's share of its step's loss is divided by.

    Args:
        totals: of the objective.
        micro_batches: into how many this rank's share is cut at present.
        router: the step's load-balancing sums, for mixture-of-experts models.
        constraints: one for each constraint of the run.
    """

    totals: StepTotals
    micro_batches: int = 1
    router: RouterSums | None = None
    constraints: Float[Tensor, " constraints"] | None = None


class CPOTrainer(ResumableTrainer):
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

    # of the running training; ``train`` begins them anew
    _watch: Watch | None = None
    _ending: Alarm | None = None
    _stopped_by: Alarm | None = None
    _rounding: Rounding | None = None
    _loss_before_step: Tensor
    given: Mapping[str, Any] | None = None
    """The options as the command was given them, without secrets; None in a script."""
    examined = False
    """Whether the doctor has spoken of the options already."""
    _base_name: str | None = None
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
        """Check and prepare everything; nothing is written before all of it is sound."""
        args = self._checked(
            args, eval_dataset, data_collator, preprocess_logits_for_metrics, optimizers[0]
        )
        check_writable(args.output_dir)
        set_seed(args.seed)  # an adapter starts from random weights
        model = _loaded(model, args, WeightsPolicy.of(args, adapter=peft_config is not None))
        if processing_class is None and model is not None:
            processing_class = _own_tokenizer(model, args)
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
        _check_stream(train_pairs, args)
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
            model_init=None if model_init is None else _then(model_init, ready),
            callbacks=[Beginning(self.run_log), *(callbacks or [])],
            optimizers=optimizers,
            compute_metrics=compute_metrics,
        )
        self._train_sums, self._guard = MetricSums(), StepGuard()
        self._updates = UpdateGuard()
        self._recorder = StepRecorder(args, self.objective)
        self._budget = TokenBudget(args.max_micro_batch_tokens, self._budget_lowered)
        self._eval_budget = TokenBudget(args.max_micro_batch_tokens, self._budget_lowered)
        self._assembled: Assembly | None = None
        self._known_proofs: dict[str, Any] = {}
        self._skipped_steps = 0
        self._balancing_weight = balancing_weight(self.model, args)
        self._environment: dict[str, Any] | None = None
        self._recorded = False
        self._pace = Pace(args.device)
        self.monitor = self._made_monitor()
        self.constraints = self._made_constraints()
        self._add_watchers()

    @property
    def balances(self) -> bool:
        """Whether the model has experts, so that how they are balanced is measured."""
        return bool(self._balancing_weight)

    def _checked(self, args: CPOConfig | None, eval_dataset: Any, *refused: Any) -> CPOConfig:
        """What can be refused before anything slow is loaded."""
        check_hooks(self, CPOTrainer)
        checked = _checked_args(args, *refused)
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
        return Monitor(self.args.monitor_steps, write, self.sound, self.engine)

    def _made_constraints(self) -> Constraints | None:
        if not self.args.constrained_by:
            return None
        return Constraints(
            self.args.constrained_by,
            self.objective,
            cpo_alpha=self.args.cpo_alpha,
            normalized=self.args.constraint_normalization,
            sound=self.sound,
            was_skipped=lambda: self.accelerator.optimizer_step_was_skipped,
        )

    def _add_watchers(self) -> None:
        """The callbacks that are the trainer's own, and what a user's script may not replace."""
        self._made_with = {name: getattr(self, name, None) for name in ATTRIBUTES}
        own: list[Any] = [self._updates]  # before those that act on an update
        if self.constraints is not None:
            own.append(self.constraints)
        if self.monitor is not None:
            own.append(self.monitor)
        if self.args.generate_during_eval and self.eval_dataset is not None:
            own.append(SamplesBefore(self._write_samples))
        own.append(self._pace)  # after those that evaluate, whose time is not a step's
        for callback in own:
            self.add_callback(callback)

    # ---- data ----

    def get_train_dataloader(self) -> PairLoader:
        """The training pairs, dealt to steps, ranks and micro-batches."""
        if self.train_dataset is None:
            raise DataError("CP209", "there is no train_dataset to train on.")
        return self._loader(self.train_dataset, "train", train=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PairLoader:
        """The pairs of an evaluation set, given raw, prepared, or by its name."""
        name = "eval"
        if isinstance(eval_dataset, str):
            name, eval_dataset = f"eval {eval_dataset}", self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise DataError("CP209", "there is no eval_dataset to evaluate on.")
        return self._loader(self._feed.pairs(eval_dataset, name), name, train=False)

    def get_test_dataloader(self, test_dataset: Any) -> PairLoader:
        """The pairs of a test set, given raw or prepared."""
        return self._loader(self._feed.pairs(test_dataset, "test"), "test", train=False)

    def _loader(self, pairs: Any, name: str, *, train: bool) -> PairLoader:
        loader = self._feed.loader(
            pairs,
            name,
            micro_batch=self.micro_batch_size if train else self.args.eval_batch_size,
            train=train,
        )
        loader.pairs = pairs
        return loader

    # ---- the optimizer ----

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

    # ---- one step ----

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
        share = self._share(pairs, self.micro_batch_size, self._budget, ranks=self.args.world_size)
        self._restore_random()  # after the proofs of a run's first pairs, before all that it draws
        totals = sum_totals([self.objective.totals(batch) for batch in share if not batch.of])
        router = None
        if self._assembly().routers and (len(share) > 1 or self.args.world_size > 1):
            router = self._router_of_step(share)
        held = None
        if self.constraints is not None:
            held = torch.stack([self.constraints.denominators(batch) for batch in share]).sum(0)
        if not ranks.alone():
            every = torch.stack([totals.weight, totals.nll])
            if held is not None:
                every = torch.cat([every, held])
            ranks.add_up(every)
            totals = StepTotals(*every[:2])
            held = None if held is None else every[2:]
        if self.constraints is not None and held is not None:
            first = self._values_of(share) if self.constraints.measures_first else None
            self.constraints.begin_step(held, first)
        empty = [self._share([], 1, self._budget) for _ in windows[1:]]
        return [*empty, share], StepDenominators(totals, router=router, constraints=held)

    def _share(
        self, pairs: list[TokenPair], most_pairs: int, budget: TokenBudget, *, ranks: int = 1
    ) -> Share:
        cut = partial(self._assembly().micro_batches, most_pairs=most_pairs)
        return Share(pairs, cut, budget, ranks=ranks)

    def _router_of_step(self, share: Share) -> RouterSums:
        """Where the step's tokens are sent, on all ranks."""
        sums = share.fitted(partial(self._router_of_share, share))
        flat = ranks.add_up(torch.cat([sums.sent, sums.tokens[None]]))
        return RouterSums(flat[:-1], sums.probability, flat[-1])

    def _router_of_share(self, share: Share) -> RouterSums:
        """A pass through the trunk without gradient, in which routers choose as in the step.

        Some draw: they draw here what they will draw there.
        """
        assembly = self._assembly()
        self.model.train()
        before = generator_states(self.args.device)
        try:
            with self.accelerator.autocast(), assembly.running():
                parts = [
                    trunk_router_sums(self.model, assembly.head, batch, routers=assembly.routers)
                    for batch in share
                ]
        finally:
            restore_generators(before)
        return add_sums(parts)

    def training_step(
        self,
        model: nn.Module,
        inputs: Share,
        num_items_in_batch: StepDenominators | None = None,
    ) -> Float[Tensor, ""]:
        """Forward and backward of a share's micro-batches; the step's loss, on this rank.

        Raises:
            SetupError: CP505 for a pair that does not fit in memory; see ``recut``.
        """
        loss = inputs.fitted(
            partial(self._forward_and_backward, model, inputs, num_items_in_batch),
            undo=partial(self._discard_step, model),
        )
        if self.args.world_size > 1 and self.optimizer.state:
            inputs.prove()  # not before the optimizer has taken its memory, in its first step
        return loss

    def _forward_and_backward(
        self, model: nn.Module, share: Share, step: StepDenominators | None
    ) -> Float[Tensor, ""]:
        if step is not None:
            router = step.router
            if router is None and self._assembly().routers and len(share) > 1:
                # one micro-batch was to be the whole step, but did not fit
                router = self._router_of_share(share)
            step = replace(step, micro_batches=len(share), router=router)
        self._recorder.begin(*((None, None) if step is None else (step.totals, step.router)))
        if self.constraints is not None:
            self._recorder.objective = self.constraints.objective_of_step()
        total = torch.zeros((), device=self.args.device)
        with self._assembly().running():
            for batch in share:
                last = batch is share.batches[-1]
                if self.args.world_size > 1 and (last or self.args.ddp_broadcast_buffers):
                    share.commit()
                self._recorder.watch(batch)
                if not last and self.constraints and not self.constraints.bears_on(batch):
                    model.train()
                    with torch.no_grad(), self.accelerator.no_sync(model):
                        self.compute_loss(model, batch, num_items_in_batch=step)
                    continue
                with nullcontext() if last else self.accelerator.no_sync(model):
                    total += super().training_step(model, batch, step)
        return total

    def _discard_step(self, model: nn.Module) -> None:
        """Forget what the running step has left behind."""
        # an optimizer leaves a parameter without a gradient as it is, momentum and decay included
        model.zero_grad(set_to_none=True)
        self._train_sums.discard()
        self._guard.discard()
        if self.constraints is not None:
            self.constraints.discard()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: StepDenominators | None = None,
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], LossTerms]:
        """This micro-batch's share of its step's loss, times the number of ranks.

        Args:
            model: as wrapped for training.
            inputs: the micro-batch.
            return_outputs: return the loss terms of each pair as well.
            num_items_in_batch: the step's denominators; None takes the batch for a whole step.

        Returns:
            The share; DDP takes the mean over ranks, hence the factor.
        """
        output = self._forward(model, inputs)
        held_off = None if self.constraints is None else self.constraints.margin(inputs)
        terms = self.objective(output.logps, inputs.margin if held_off is None else held_off)
        step = num_items_in_batch or StepDenominators(self.objective.totals(inputs))
        # shares of a step add up to one value, so all of them together count once
        part = inputs.weight.new_tensor(1 / (step.micro_batches * self.args.world_size))
        if inputs.of:  # a constraint's own: nothing of the objective, but a loss all the same
            loss = 0 * torch.nan_to_num(output.logps.chosen).sum()
            # what the objective would make of them is no concern of the guard's
            terms = replace(terms, preference=terms.chosen_logps - terms.rejected_logps)
        else:
            loss = self.objective.share(terms, inputs.weight, step.totals)
            self._train_sums.add(pair_means(terms, output, inputs))
        if self.constraints is not None:
            held = step.constraints
            if held is None:
                held = self.constraints.denominators(inputs)
            loss = self.constraints.share(loss, output.logps, terms, inputs, held)
        self._guard.watch(terms, inputs)
        if output.router is not None:
            balance = balancing_loss(output.router, step.router or output.router)
            loss = loss + self._balancing_weight * balance
            self._train_sums.add({"aux_loss": (balance, part)})
        self._train_sums.add({"loss": (loss, part)})
        loss = loss * self.args.world_size
        return (loss, terms) if return_outputs else loss

    def _forward(self, model: nn.Module, batch: PairBatch) -> PairOutput:
        with self.accelerator.autocast():
            return pair_forward(
                model,
                self._assembly().head,
                batch,
                routers=self._assembly().routers,
                initial=None if self.constraints is None else self.constraints.policy,
            )

    def _assembly(self) -> Assembly:
        """Head and layout of the model; a new model (``model_init``) has its own."""
        if self._assembled is None or self._assembled.model is not self.model:
            self._assembled = Assembly(
                self.model,
                self.args,
                vocab_size=embedding_rows(self.model),
                # old models warn of the pad token where no mask is given
                pad_id=0 if self.processing_class.pad_token_id else 1,
                autocast=self.accelerator.autocast,
                layouts=family_of(self.model.config).layouts,
                balanced=self._balancing_weight > 0,
            )
            self._assembled.load_state_dict(self._known_proofs)
        return self._assembled

    def step_norm(self, model: nn.Module, norm: Any) -> Any:
        """The norm of the step's gradient; the last moment before the weights move."""
        norm = super().step_norm(model, norm)
        has_scaler = self.accelerator.scaler is not None
        problem = self._guard.close(None if has_scaler else norm, self._updates)
        if problem is None:
            self._train_sums.apply()
            return norm
        self._discard_step(model)
        step = self.state.global_step + 1
        where = self._recorder.keep(
            problem,
            step,
            self.model,
            self._assembly().head,
            balancing_weight=self._balancing_weight,
        )
        error = non_finite_error(problem.seen, step, self.args.alpha, where)
        if self.args.nonfinite == "raise":
            raise error
        self.running_loss.copy_(self._loss_before_step)
        self._skipped_steps += 1
        logger().warning("skipped: %s", error)
        return None

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch; before the first of a run, the initial policy is measured."""
        if self.constraints is not None and not self.is_resumed and epoch.number == 0:
            self._calibrate(self.constraints)
        super().train_epoch(epoch)

    def _calibrate(self, constraints: Constraints) -> None:
        self.model.eval()
        few = self._feed.spread(self.train_dataset, self.args.constraint_calibration)
        few += self._second_sets.initial(self.args.constraint_calibration)
        with torch.no_grad():
            calibrate(constraints, self._reader(), few, self._sets())
        for line in constraints.formula().splitlines():
            logger().info("%s", line)
        self._describe()

    def _reader(self) -> Reader:
        return Reader(
            self.args,
            lambda pairs: self._share(pairs, self.args.eval_batch_size, self._eval_budget),
            self._outputs,
        )

    # ---- evaluation ----

    def _own_values(self, constraints: Constraints) -> dict[str, float]:
        """Values and violations of the constraints that have a set of their own."""
        with torch.no_grad():
            sums = sums_of(constraints, self._reader(), self._second_sets.held_out())
        named = zip(constraints.all, *sums.tolist(), strict=True)
        values = {
            constraint_metric(one.asked.name, "value"): numerator / total
            for one, numerator, total in named
            if total > 0
        }
        return values | constraints.violations(values)

    def evaluation_loop(
        self,
        dataloader: PairLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """One pass over a set: its loss is the objective of the whole set, however it is cut."""
        evaluation = self._pass(dataloader)
        metrics, pairs = evaluation.metrics()
        scores = evaluation.scores()
        accuracy = accuracy_interval(scores)
        if self.constraints is not None and self._second_sets.all:
            metrics |= self._own_values(self.constraints)
        metrics |= {
            "rewards/accuracies_low": accuracy.low,
            "rewards/accuracies_high": accuracy.high,
        }
        predictions = None
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        if self.compute_metrics is not None and not prediction_loss_only:
            predictions = np.stack([scores.chosen_rewards, scores.rejected_rewards], axis=1)
            labels = np.zeros(len(predictions), dtype=np.int64)
            metrics |= self.compute_metrics(EvalPrediction(predictions, labels))
        if self.args.generate_during_eval:
            metrics |= self._sampled(dataloader.pairs, metric_key_prefix)
        prefix = f"{metric_key_prefix}_"
        named = {k if k.startswith(prefix) else prefix + k: v for k, v in metrics.items()}
        return EvalLoopOutput(predictions, None, named, pairs)

    def evaluate_in_training(self, *facts: Any, **more: Any) -> dict[str, float]:
        """Evaluate while training; the metric that a learning rate goes by has to be given."""
        try:
            return super().evaluate_in_training(*facts, **more)
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            now = [
                line for line in self.state.log_history if line["step"] == self.state.global_step
            ]
            given = {name for line in now for name in line if name.startswith(PREFIX)}
            raise not_given(str(self.args.metric_for_best_model), given) from error

    def is_best_so_far(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best so far."""
        wanted = prefixed(self.args.metric_for_best_model)
        if wanted is not None and wanted not in metrics:
            raise not_given(wanted, metrics)
        return super().is_best_so_far(metrics, trial)

    def measure(self, dataset: Any, name: str = "test") -> EvaluationPass:
        """What the model says of every pair of a set, for statistics; no gradient is paid for.

        Args:
            dataset: raw or prepared rows.
            name: the set's name in messages.

        Returns:
            The pass, with its ``metrics`` and the ``scores`` of each pair, over all ranks.

        Raises:
            DataError: CP2xx for rows that are not pairs.
        """
        return self._pass(self._loader(self._feed.pairs(dataset, name), name, train=False))

    def _pass(self, dataloader: PairLoader) -> EvaluationPass:
        self._check_replaced()
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rows = next((n for n, s in self._sets().items() if s is dataloader.pairs), None)
        evaluation = EvaluationPass(self.objective, self._balancing_weight, self.constraints, rows)
        batches = iter(dataloader)  # whose workers are forked now, before a phase's thread is there
        with torch.no_grad(), evaluating(self.callback_handler, dataloader) as now:
            for pairs in batches:
                evaluation.note(pairs)
                share = self._share(pairs, self.args.eval_batch_size, self._eval_budget)
                # counted when all of it is there, so that nothing is counted twice
                outputs = share.fitted(partial(self._outputs, share))
                for output, batch in zip(outputs, share, strict=True):
                    evaluation.add(output, batch)
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
                now.advance()
        return evaluation

    def _write_samples(self) -> None:
        """Write to a few prompts of each evaluation set, and log what the texts are like."""
        several = isinstance(self.eval_dataset, dict)
        sets = self.eval_dataset if several else {"": self.eval_dataset}
        found: dict[str, float] = {}
        for name, pairs in sets.items():
            prefix = f"eval_{name}" if name else "eval"
            found |= {f"{prefix}_{k}": v for k, v in self._sampled(pairs, prefix).items()}
        self.log(found)

    def _sampled(self, pairs: Any, name: str) -> dict[str, float]:
        """Samples of one set, written to the run log and judged; their statistics."""
        few = self._feed.some(pairs, self.args.eval_samples)
        with self.accelerator.autocast():
            written = sample(self.model, self.processing_class, few, decodings(self.args))
        about = {"step": self.state.global_step, "set": name}
        entries = [{**about, **one.as_entry()} for one in written]
        if self.is_in_train and self.is_world_process_zero():
            facts = alarm_facts(self.args, self.state.max_steps)
            for alarm in degenerate_in_run(self.run_log.folder, entries, facts):
                self.sound(alarm)
        for entry in entries:
            self.run_log.append(SAMPLES, entry)
        found = dict(sample_metrics(written))
        if self.is_in_train and self.constraints is not None:
            lengths = [len(one.ids) for one in written if one.kind == "greedy"]
            step, most = self.state.global_step, self.args.eval_sample_tokens
            found |= self.constraints.written(lengths, step, most)
        return found

    def _values_of(self, share: Share) -> Float[Tensor, " constraints"]:
        """Numerators of the constraints on a step's pairs, over all ranks; without gradient."""
        assert self.constraints is not None
        self.model.train()  # as the step itself will be taken, whatever came before it
        found = []
        with torch.no_grad():
            outputs = share.fitted(partial(self._outputs, share))
            for output, batch in zip(outputs, share, strict=True):
                terms = self.objective(output.logps, batch.margin)
                found.append(self.constraints.numerators(output.logps, terms, batch)[0])
        return ranks.add_up(torch.stack(found).sum(0))

    def _outputs(self, share: Share) -> list[PairOutput]:
        with self._assembly().running():
            return [self._forward(self.model, batch) for batch in share]

    # ---- the run ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see ``transformers.Trainer.train``. Writes ``run.json`` first.

        Args:
            resume_from_checkpoint: a checkpoint to go on from; see ``resuming``.
            args: transformers' further arguments.
            kwargs: the same by name.
        """
        self._check_replaced()
        check_best_metric(self)
        self._skipped_steps = 0
        self._take_identity()
        with self.resuming(resume_from_checkpoint) as checkpoint:
            self._base_name = self.base_name() if self.base_then is None else self.base_then
            announce(self._formula(), self.args, self.args.world_size)
            for counts in self._feed.counts().values():
                if counts.rows:
                    logger().info("%s", counts.summary())
            planned = checkpoint is not None or self._budget.tokens is not None
            if not planned and self.train_dataset is not None:
                with phase("planning micro-batches that fit in memory"):
                    self._budget.tokens = fitting_budget(self.model, self.args, self.train_dataset)
            self._watch, self._ending, self._stopped_by = None, None, None
            if self.constraints is not None:
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
            self._budget.agree(self.args.device)
            self._eval_budget.agree(self.args.device)
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
        return base_of(self.model)

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

    def _sets(self) -> dict[str, Any]:
        """Every prepared set that the trainer was given, by name."""
        named = isinstance(self.eval_dataset, Mapping)
        sets = (
            {f"eval {n}": s for n, s in self.eval_dataset.items()}
            if named
            else {"eval": self.eval_dataset}
        )
        every = {"train": self.train_dataset, **sets}
        return {name: pairs for name, pairs in every.items() if pairs is not None}

    def state_dict(self) -> dict[str, Any]:
        """Skipped steps, what was proved, where the streams are, the multipliers."""
        proofs = self._known_proofs if self._assembled is None else self._assembled.state_dict()
        held = None if self.constraints is None else self.constraints.kept()
        return {
            "model": self._began_with(),
            "skipped_steps": self._skipped_steps,
            "proofs": proofs,
            "feed": self._feed.state(),
            "constraints": held,
        }

    def before_loading(self) -> None:
        """The model is still the one that a run began with, which a constraint may need."""
        if self.constraints is not None:
            self.constraints.remember(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._skipped_steps = state["skipped_steps"]
        # up to 0.4 the layout alone
        self._known_proofs = state["proofs"] if "proofs" in state else {"layout": state["layout"]}
        if self._assembled is not None:
            self._assembled.load_state_dict(self._known_proofs)
        self._feed.load_state(state["feed"], within_pass=self._place.steps > 0)
        if self.constraints is not None and state.get("constraints"):
            self.constraints.take(state["constraints"], anyway=self.args.resume_anyway)
            self._describe()

    def rank_state_dict(self) -> dict[str, Any]:
        """The sums since the last log line, and what was learnt of this rank's memory."""
        budgets = (self._budget, self._eval_budget)
        return {
            "sums": self._train_sums.state(),
            "budgets": [{"tokens": b.tokens, "proved": b.proved} for b in budgets],
        }

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._train_sums.load_state(state["sums"], self.args.device)
        for budget, kept in zip((self._budget, self._eval_budget), state["budgets"], strict=True):
            budget.tokens, budget.proved = kept["tokens"], kept["proved"]

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last line, and write the line to the run log."""
        if "train_loss" in logs:  # which transformers divides by the steps of this call alone
            logs["train_loss"] = self._mean_loss()
        if "loss" in logs:
            del logs["loss"]  # transformers counts skipped steps; ours are of applied ones
            sums = self._train_sums.read(self._pace.counts(), self.args.device)
            pace = self._pace.metrics({name: sums.pop(name)[0] for name in COUNTED})
            found = means(sums)
            logs = {name: found.pop(name) for name in ("loss",) if name in found} | logs | found
            logs |= pace
            if self.constraints is not None:
                logs |= self.constraints.metrics()
            if self._skipped_steps:
                logs["skipped_steps"] = self._skipped_steps
        super().log(logs, start_time)
        self.run_log.append(METRICS, self.state.log_history[-1])
        if self.is_in_train:
            if self._watch is None:  # a resumed run reads its old lines again
                self._watch = Watch(alarm_facts(self.args, self.state.max_steps))
            for alarm in self._watch.catch_up(self.state.log_history):
                self.sound(alarm)

    def sound(self, alarm: Alarm) -> None:
        """Say an alarm, write it to the run log, and end the run if ``on_alarm`` says so.

        Args:
            alarm: its code is in docs/diagnoses.md. It is to be sounded on the main process, or
                on all; the run ends on all of them, after this step.
        """
        self._write_alarm(alarm)
        if self.is_in_train and ends_a_run(alarm, self.args) and self._ending is None:
            self._ending = alarm

    def _write_alarm(self, alarm: Alarm) -> None:
        if self.is_world_process_zero():
            logger().warning("%s", in_words(alarm))
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
            self._updates.settle()  # nothing is said, chosen or kept of weights that are lost
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

    def _describe_again(self) -> None:
        if self.run_log.described:  # what is refused before it begins leaves a folder as it was
            self._describe()

    def _budget_lowered(self) -> None:
        if self.is_in_train:  # an evaluation alone leaves the files of a run as they are
            self._describe()

    def _formula(self) -> str:
        """What is minimised, and subject to what."""
        lines = [self.objective.formula()]
        return "\n".join(
            lines if self.constraints is None else [*lines, self.constraints.formula()]
        )

    def _began_with(self) -> str:
        return self.base_name() if self._base_name is None else self._base_name

    def _describe(self) -> None:
        if not self.is_world_process_zero():
            return
        if self._environment is None:
            self._environment = environment()
        self.run_log.describe(
            {
                "objective": self._formula(),
                "model": self._began_with(),
                "adapter": adapter_settings(self.accelerator.unwrap_model(self.model)) or None,
                "base": self._identity.get(BASE),
                "step_pairs": self.args.train_batch_size
                * self.args.gradient_accumulation_steps
                * self.args.world_size,
                "layout": None if self._assembled is None else self._assembled.layout,
                "micro_batch_tokens": {
                    "train": self._budget.tokens,
                    "eval": self._eval_budget.tokens,
                },
                "balancing_weight": self._balancing_weight,
                "skipped_steps": self._skipped_steps,
                "rounding": None if self._rounding is None else asdict(self._rounding),
                "data": {name: counts.as_dict() for name, counts in self._feed.counts().items()},
                **({} if self.constraints is None else self.constraints.facts()),
                "options": self.args.to_dict(),
                "environment": self._environment,
                "changed": list(self.args.changed),
                "given": self.given,
            }
        )


def _then(
    model_init: Callable[..., nn.Module], ready: Callable[[nn.Module], nn.Module]
) -> Callable[..., nn.Module]:
    """A ``model_init`` whose model is made ready, with as many arguments as it had."""
    # transformers counts the arguments to see whether a trial is wanted
    if inspect.signature(model_init).parameters:
        return lambda trial: ready(model_init(trial))
    return lambda: ready(model_init())


def _loaded(
    model: nn.Module | str | None, args: CPOConfig, policy: WeightsPolicy
) -> nn.Module | None:
    """The model itself, loaded if it is given by name."""
    if isinstance(model, str):
        # refuses what cannot be trained before any weight is read
        family = family_of(load_config(model, args))
        loaded: nn.Module = load_model(model, args, policy, family=family)
        return loaded
    if args.model_init_kwargs:
        raise ConfigError("CP104", "model_init_kwargs is given, but the model is loaded already.")
    return model


def _check_stream(pairs: Any, args: CPOConfig) -> None:
    """Refuse what cannot be done with a training set, if it is streamed."""
    if pairs is None or hasattr(pairs, "__len__"):
        return
    if args.max_steps <= 0:
        raise ConfigError("CP107", "a streamed train_dataset has no length: set max_steps.")
    for name in ("dataloader_num_workers", "dataloader_drop_last"):
        if getattr(args, name):
            raise ConfigError(
                "CP104",
                f"{name}={getattr(args, name)} does nothing with a streamed train_dataset, which "
                "the training process reads in its order to its end; leave it out.",
            )


def _own_tokenizer(model: nn.Module, args: CPOConfig) -> Any:
    """The tokenizer that lies beside a model's weights."""
    source = loaded_from(model)
    if not source:
        raise ModelError(
            "CP301", "a model made in memory has no tokenizer of its own; pass processing_class."
        )
    return load_tokenizer(source, args)


def _checked_args(
    args: CPOConfig | None, data_collator: Any, preprocess: Any, optimizer: Any
) -> CPOConfig:
    if args is None:
        args = CPOConfig(output_dir="tmp_trainer")
    if not isinstance(args, CPOConfig):
        raise ConfigError("CP103", f"args should be a CPOConfig, not a {type(args).__name__}.")
    if data_collator is not None:
        raise ConfigError(
            "CP105",
            "data_collator is refused: how a batch is laid out is chosen so that a step stays "
            "the same function of its pairs.",
        )
    if preprocess is not None:
        raise ConfigError(
            "CP105",
            "preprocess_logits_for_metrics is refused: logits exist only in chunks and are "
            "never kept; compute_metrics gets each pair's rewards.",
        )
    if args.stochastic_rounding and optimizer is not None:
        raise ConfigError(
            "CP104", "stochastic_rounding brings its own optimizer, but optimizers has one."
        )
    check_trackers(args)
    allow_bars(not args.disable_tqdm)
    keep_secrets(vars(args))
    hide_secrets(args)
    launched = ranks.launched()
    if launched > 1 and args.world_size == 1:
        raise SetupError(
            "CP503",
            f"{launched} processes were launched (WORLD_SIZE), but accelerate sees one, so that "
            "each would train alone on all rows and write the same folder. Launch with torchrun "
            "or accelerate launch.",
        )
    if args.n_gpu > 1:
        raise SetupError(
            "CP503",
            f"one process with {args.n_gpu} GPUs would split batches behind the trainer's back. "
            f"Launch with torchrun --nproc-per-node={args.n_gpu}, or show it one GPU with "
            "CUDA_VISIBLE_DEVICES=0.",
        )
    if not args.remove_unused_columns:  # as TRL sets it itself, so that many scripts say it
        logger().info("remove_unused_columns=False changes nothing: columns go by their meaning")
    # nothing but DDP's default; buffers of a language model are constants, and a rank that begins
    # a step again could not broadcast them a second time
    args.ddp_broadcast_buffers = bool(args.ddp_broadcast_buffers)
    return args
