"""The loss of a run with constraints, in the place of a run's without.

Not here: what constraints measure and how their multipliers move (``constraint_set``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.forward.pair_forward import PairOutput
from counterpoint.losses.objective import Objective
from counterpoint.metrics import Means
from counterpoint.records import LossTerms, PairBatch
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.loss import StepDenominators, StepLoss


class ConstrainedLoss(StepLoss):
    """The loss of a run with constraints: prices on margins, and terms beside the objective.

    Args:
        objective: of the run.
        balancing_weight: of the load-balancing loss; 0 without experts.
        constraints: of the run, at least one.
    """

    def __init__(
        self, objective: Objective, balancing_weight: float, constraints: ConstraintSet
    ) -> None:
        super().__init__(objective, balancing_weight)
        self.constraints = constraints

    def terms(self, output: PairOutput, batch: PairBatch) -> LossTerms:
        """With what bounds on length take off the margins."""
        terms = self.objective(output.logps, self.constraints.margin(batch))
        if not batch.of:
            return terms
        # what the objective would make of a constraint's own pairs is no concern of the guard
        return replace(terms, preference=terms.chosen_logps - terms.rejected_logps)

    def share(
        self, output: PairOutput, terms: LossTerms, batch: PairBatch, step: StepDenominators
    ) -> Float[Tensor, ""]:
        """With each constraint's multiplier times its value."""
        if batch.of:
            # nothing of the objective, but a loss all the same: ranks meet in its backward
            own = 0 * torch.nan_to_num(output.logps.chosen).sum()
        else:
            own = super().share(output, terms, batch, step)
        return self.constraints.share(own, output.logps, terms, batch, step.constraints)

    def metrics(self, output: PairOutput, terms: LossTerms, batch: PairBatch) -> Means:
        """Of the run's own pairs alone."""
        return {} if batch.of else super().metrics(output, terms, batch)

    def denominators(self, batches: Sequence[PairBatch]) -> StepDenominators:
        """With those of the constraints."""
        own = super().denominators([batch for batch in batches if not batch.of])
        held = torch.stack([self.constraints.denominators(batch) for batch in batches]).sum(0)
        return replace(own, constraints=held)

    def bears_on(self, batch: PairBatch) -> bool:
        """A constraint's own pairs do while its multiplier is not 0."""
        return self.constraints.bears_on(batch)


def loss_of(objective: Objective, balancing_weight: float, constraints: ConstraintSet) -> StepLoss:
    """The loss of a run, constrained where anything constrains it."""
    if constraints.all:
        return ConstrainedLoss(objective, balancing_weight, constraints)
    return StepLoss(objective, balancing_weight)
