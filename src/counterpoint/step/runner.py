"""Forward and backward of a step on this rank: its share of the pairs, cut so that it fits.

    pairs ──cut──▶ share ──denominators──▶ forward, loss, backward of each micro-batch ──▶ verdict

A step may be done again: where memory runs out it is cut anew, and where it is not finite it is
thrown away. So whatever it leaves behind (sums of metrics, verdicts, numerators of constraints) is
held back until it is known to count.

Not here: the optimizer and the loop (``trainer``), what a micro-batch comes to (``loss``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.engine.face import Engine, Pass
from counterpoint.errors import NonFiniteError
from counterpoint.metrics import MetricSums
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.assembly import Assembly
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.experts import ExpertBalance
from counterpoint.step.finite import UpdateGuard
from counterpoint.step.guard import NotFinite, StepGuard, non_finite_error
from counterpoint.step.loss import MicroBatchLoss, StepDenominators, StepLoss
from counterpoint.step.reader import PairReader
from counterpoint.step.replay.recorder import StepRecorder
from counterpoint.step.share import Share, TokenBudget

Backward = Callable[[nn.Module, PairBatch, StepDenominators | None], Tensor]
"""Model, micro-batch and its step -> its loss, after its backward if it has one."""


class StepRunner(PairReader):
    """The steps of a run, one after the other.

    Args:
        loss: of the run.
        constraints: of the run, perhaps none.
        engine: where it runs.
        assembly: head, layout and routers of the model that trains, as they are now.
        device: of the model.
        recorder: keeps a step that is not finite.
        most_tokens: of a micro-batch, to start with; None: pairs are cut by their number.
        lowered: called after that was lowered, as memory had run out.
    """

    def __init__(
        self,
        loss: StepLoss,
        constraints: ConstraintSet,
        engine: Engine,
        assembly: Callable[[], Assembly],
        *,
        device: torch.device,
        recorder: StepRecorder,
        most_tokens: int | None,
        lowered: Callable[[], None],
    ) -> None:
        self.budget = TokenBudget(most_tokens, lowered)
        self.eval_budget = TokenBudget(most_tokens, lowered)
        super().__init__(constraints, engine, assembly, self.eval_budget, device)
        self.budgets = (self.budget, self.eval_budget)
        self.loss, self.recorder = loss, recorder
        self.sums, self.guard, self.updates = MetricSums(), StepGuard(), UpdateGuard()
        self._balance = ExpertBalance(engine, assembly, device)

    # ---- a step ----

    def share(self, pairs: Sequence[TokenPair], most_pairs: int) -> Share:
        """This rank's pairs of a step, cut into micro-batches."""
        assembly = self._assembly()
        assembly.choose(pairs, self.budget.tokens, most_pairs=most_pairs)
        cut = partial(assembly.micro_batches, most_pairs=most_pairs)
        return Share(pairs, cut, self.budget, ranks=ranks.count(), in_step=self.engine.in_step)

    def begin(self, share: Share) -> StepDenominators:
        """The denominators of a step over all ranks; its multipliers hold still from here on.

        Args:
            share: this rank's part of it.
        """
        router = self._balance.over_step(share.fill_up(self.device))
        step = replace(self.loss.denominators(share.batches).over_ranks(), router=router)
        self.constraints.begin_step(step.constraints, partial(self.first_values, share))
        return step

    def run(
        self,
        model: nn.Module,
        share: Share,
        step: StepDenominators | None,
        backward: Backward,
        forward: Backward,
    ) -> Float[Tensor, ""]:
        """Forward and backward of a share's micro-batches; the step's loss, on this rank.

        Args:
            model: as wrapped for training.
            share: the micro-batches.
            step: their denominators; None for a batch that is a step of its own.
            backward: forward and backward of one micro-batch.
            forward: its loss alone, for one that has no part in the gradient.

        Raises:
            SetupError: CP505 for a pair that does not fit in memory; see ``share``.
        """

        def attempt() -> Tensor:
            now = step
            if now is not None:
                # one micro-batch was to be the whole step, but perhaps it did not fit
                router = now.router or self._balance.over_share(share)
                now = replace(now, micro_batches=len(share), router=router)
            self.recorder.begin(now)
            total = torch.zeros((), device=self.device)
            meet = self.engine.collective_passes
            with self._assembly().running():
                for number, batch in enumerate(share):
                    last = number == len(share) - 1
                    if Pass.FORWARD in meet or (last and Pass.LAST_BACKWARD in meet):
                        share.commit()
                    self.recorder.watch(batch)
                    with self.engine.accumulating(model, last=last):
                        if last or Pass.BACKWARD in meet or self.loss.bears_on(batch):
                            total += backward(model, batch, now)
                            continue
                        model.train()
                        with torch.no_grad():
                            forward(model, batch, now)
            return total

        return share.fitted(attempt, undo=partial(self.discard, model))

    def micro_batch(
        self, model: nn.Module, batch: PairBatch, step: StepDenominators | None
    ) -> MicroBatchLoss:
        """Forward and loss of a micro-batch, noted for the log and for the guard.

        Args:
            model: as wrapped for training.
            batch: the micro-batch.
            step: its step's denominators; None takes the batch for a whole step.

        Returns:
            Its share of the loss, times what the engine divides gradients by.
        """
        output = self.forward(model, batch)
        found = self.loss(output, batch, step or self.loss.denominators([batch]))
        self.guard.watch(found.terms, batch, found.loss)
        self.sums.add(found.metrics)
        return replace(found, loss=found.loss * self.engine.loss_factor)

    def judge(self, norm: Tensor | float | None) -> NotFinite | None:
        """The verdict on a step whose gradients have met; a finite one counts from here on.

        Args:
            norm: of its gradient; None leaves the gradient unchecked, for a loss scaler.
        """
        problem = self.guard.close(norm, self.updates)
        if problem is None:
            self.sums.apply()
        return problem

    def throw_away(self, problem: NotFinite, step: int, model: nn.Module) -> NonFiniteError:
        """Keep a step that is not finite for a replay, and forget what it left.

        Args:
            problem: the verdict.
            step: its number, from 1.
            model: not wrapped for distributed training.

        Returns:
            CP401, ready to raise.
        """
        self.discard(model)
        head, in_step = self._assembly().head, self.engine.in_step
        where = self.recorder.keep(problem, step, model, head, in_step=in_step)
        return non_finite_error(problem.seen, step, self.loss.objective.alpha, where)

    def discard(self, model: nn.Module) -> None:
        """Forget what the running step has left behind."""
        # an optimizer leaves a parameter without a gradient as it is, momentum and decay included
        model.zero_grad(set_to_none=True)
        self.sums.discard()
        self.guard.discard()
        self.constraints.discard()
