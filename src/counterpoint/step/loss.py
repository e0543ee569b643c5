"""What a micro-batch adds to its step's loss; it reads like the flow.

    PairOutput ──objective──▶ LossTerms ──over the step's denominators──▶ share + load balance

The shares of all micro-batches of all ranks add up to one value, the loss of the step's set of
pairs, however they were cut. A run with constraints has a ``constrained_loss`` in its place.

Not here: the forward pass (``forward.pair_forward``), what is done with the loss (``runner``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import ranks
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.forward.router import RouterSums, balancing_loss
from counterpoint.losses.objective import Objective, sum_totals
from counterpoint.metrics import Means, pair_means
from counterpoint.records import LossTerms, PairBatch, StepTotals


@dataclass(frozen=True, slots=True)
class StepDenominators:
    """What a micro-batch's share of its step's loss is divided by.

    Args:
        totals: of the objective.
        constraints: one for each constraint of the run.
        micro_batches: into how many this rank's share is cut at present.
        router: the step's load-balancing sums, for mixture-of-experts models.
    """

    totals: StepTotals
    constraints: Float[Tensor, " constraints"]
    micro_batches: int = 1
    router: RouterSums | None = None

    def over_ranks(self) -> StepDenominators:
        """Those of all ranks together, in one exchange."""
        mine = torch.cat([torch.stack([self.totals.weight, self.totals.nll]), self.constraints])
        weight, nll, *_ = every = ranks.add_up(mine)
        return replace(self, totals=StepTotals(weight, nll), constraints=every[2:])


@dataclass(frozen=True, slots=True)
class MicroBatchLoss:
    """What a micro-batch comes to.

    Args:
        loss: its share of the step's loss.
        terms: of each pair.
        metrics: what it adds to the log.
    """

    loss: Float[Tensor, ""]
    terms: LossTerms
    metrics: Means


class StepLoss:
    """The loss of a run.

    Args:
        objective: of the run.
        balancing_weight: of the load-balancing loss; 0 without experts.
    """

    def __init__(self, objective: Objective, balancing_weight: float = 0.0) -> None:
        self.objective, self.balancing_weight = objective, balancing_weight

    def __call__(
        self, output: PairOutput, batch: PairBatch, step: StepDenominators
    ) -> MicroBatchLoss:
        """The share of a micro-batch.

        Args:
            output: of the forward pass of its pairs.
            batch: the pairs.
            step: denominators of the step that they are of.
        """
        terms = self.terms(output, batch)
        loss = self.share(output, terms, batch, step)
        metrics = dict(self.metrics(output, terms, batch))
        # all micro-batches of all ranks together count once
        once = batch.weight.new_tensor(1 / (step.micro_batches * ranks.count()))
        if output.router is not None:
            balance = balancing_loss(output.router, step.router or output.router)
            loss = loss + self.balancing_weight * balance
            metrics["aux_loss"] = (balance, once)
        metrics["loss"] = (loss, once)
        return MicroBatchLoss(loss, terms, metrics)

    def terms(self, output: PairOutput, batch: PairBatch) -> LossTerms:
        """What the objective makes of each pair."""
        return self.objective(output.logps, batch.margin)

    def share(
        self, output: PairOutput, terms: LossTerms, batch: PairBatch, step: StepDenominators
    ) -> Float[Tensor, ""]:
        """The share of these pairs, load balance left out."""
        return self.objective.share(terms, batch.weight, step.totals)

    def metrics(self, output: PairOutput, terms: LossTerms, batch: PairBatch) -> Means:
        """What these pairs add to the log."""
        return pair_means(terms, output, batch)

    def denominators(self, batches: Sequence[PairBatch]) -> StepDenominators:
        """What this rank's micro-batches add to the denominators of their step."""
        totals = sum_totals([self.objective.totals(batch) for batch in batches])
        return StepDenominators(totals, totals.weight.new_zeros(0))

    def bears_on(self, batch: PairBatch) -> bool:
        """Whether a micro-batch has a part in the gradient of its step."""
        return True
