"""The step as transformers asks for it, handed over to ``step.runner``.

Four things transformers does not do: a step's denominators are known before its first backward
(``get_batch_samples``), so that a step is a function of its set of pairs; a step that does not fit
in memory is cut and done again (``training_step``); a non-finite step never reaches the weights
(``step_norm``); and the initial policy is measured before the first step (``train_epoch``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.forward.offload import offloading
from counterpoint.log import logger
from counterpoint.models.family import family_of
from counterpoint.models.preparing import embedding_rows
from counterpoint.records import LossTerms, PairBatch, TokenPair
from counterpoint.step.assembly import Assembly
from counterpoint.step.calibration import calibrate
from counterpoint.step.constrained_loss import loss_of
from counterpoint.step.loss import StepDenominators
from counterpoint.step.references import ask_reference
from counterpoint.step.replay.file import Settings
from counterpoint.step.replay.recorder import StepRecorder
from counterpoint.step.runner import StepRunner
from counterpoint.step.share import Share
from counterpoint.trainer.journal import JournalTrainer
from counterpoint.trainer.second_sets import SecondSets
from counterpoint.trainer.transformers_seams import Epoch


class SteppingTrainer(JournalTrainer):
    """What ``CPOTrainer`` inherits of a step."""

    _second_sets: SecondSets
    _loss_before_step: Tensor
    _known_proofs: dict[str, Any]

    def _sets(self) -> dict[str, Any]:
        """Every prepared set that the trainer was given, by name."""
        raise NotImplementedError

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
        # transformers logs the mean over ranks of what it is given
        return loss * (ranks.count() // self.engine.loss_factor)

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
        with offloading(self.args.device, wanted=self.args.activation_offload):
            found = self.runner.micro_batch(model, inputs, num_items_in_batch)
        return (found.loss, found.terms) if return_outputs else found.loss

    def clip_gradient(self, model: nn.Module) -> Any:
        """Cut the step's gradient to ``max_grad_norm``; its norm before."""
        self.accelerator.unscale_gradients()
        return self.engine.clip(model, self.args.max_grad_norm)

    def step_norm(self, model: nn.Module, norm: Any) -> Any:
        """The norm of the step's gradient; the last moment before the weights move."""
        if norm is None:
            self.accelerator.unscale_gradients()
            norm = self.engine.clip(model)
        has_scaler = self.accelerator.scaler is not None
        problem = self.runner.judge(None if has_scaler else norm)
        if problem is None:
            return norm
        step = self.state.global_step + 1
        error = self.runner.throw_away(problem, step, self.model)
        if self.args.nonfinite == "raise":
            raise error
        self.running_loss.copy_(self._loss_before_step)
        self.skipped_steps += 1
        logger().warning("skipped: %s", error)
        return None

    def train_epoch(self, epoch: Epoch) -> None:
        """Train one epoch; before the first of a run, the initial policy is measured."""
        self.engine.ready(epoch.facts["model"])
        if not self.is_resumed and epoch.number == 0:
            self._compare([*self._sets().values(), *self._second_sets.prepared().values()])
            self._calibrate()
        super().train_epoch(epoch)

    def _compare(self, sets: Iterable[Any], *, moved: bool = False) -> None:
        """Know what the reference gives every pair of some sets, if the loss compares with one."""
        feed = self._feed
        ask_reference(feed.references, sets, self.runner, self.args, feed.encoder, moved=moved)

    def _calibrate(self) -> None:
        if not self.constraints.all:
            return
        self.model.eval()
        few = self._feed.spread(self.train_dataset, self.args.constraint_calibration)
        few += self._second_sets.initial(self.args.constraint_calibration)
        with torch.no_grad():
            calibrate(self.runner, self.args.eval_batch_size, few, self._sets(), self._feed.to_pair)
        for line in self.constraints.formula().splitlines():
            logger().info("%s", line)
        self._describe()

    def _made_runner(self) -> StepRunner:
        args = self.args
        loss = loss_of(self.objective, self._balancing_weight, self.constraints)
        settings = Settings(
            autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else "",
            device=args.device.type,
            checkpointing=bool(args.gradient_checkpointing),
            checkpointing_share=args.checkpointing_share,
            offload=args.activation_offload and args.device.type != "cpu",
            dropout=not args.disable_dropout,
            pictures_alone=bool(args.picture_cache_gb),
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

    def _assembly(self) -> Assembly:
        """Head and layout of the model; a new model (``model_init``) has its own."""
        if self._assembled is None or self._assembled.model is not self.model:
            self._assembled = Assembly(
                self.model,
                wanted=self.args.layout,
                pins=self.args.dataloader_pin_memory,
                vocab_size=embedding_rows(self.model),
                # old models warn of the pad token where no mask is given
                pad_id=0 if self.processing_class.pad_token_id else 1,
                engine=self.engine,
                family=family_of(self.model.config),
                balanced=self._balancing_weight > 0,
            )
            self._assembled.look = self._feed.encoder.look
            self._assembled.load_state_dict(self._known_proofs)
        return self._assembled
