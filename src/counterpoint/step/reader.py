"""The one forward pass, and pairs that are read through it without gradient.

Training, evaluation and the constraints' values go through ``PairReader.forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.engine.face import Engine
from counterpoint.forward.pair_forward import PairOutput, pair_forward
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.assembly import Assembly
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.share import Share, TokenBudget


class PairReader:
    """Runs pairs through the model as it is.

    Args:
        constraints: of the run; they know the initial policy, where one of them needs it.
        engine: where it runs.
        assembly: head, layout and routers of the model that trains, as they are now.
        eval_budget: of micro-batches without gradient.
        device: of the model.
    """

    def __init__(
        self,
        constraints: ConstraintSet,
        engine: Engine,
        assembly: Callable[[], Assembly],
        eval_budget: TokenBudget,
        device: torch.device,
    ) -> None:
        self.constraints, self.engine, self.device = constraints, engine, device
        self._assembly, self._eval_budget = assembly, eval_budget

    @property
    def model(self) -> nn.Module:
        """What is run, unwrapped from distributed training."""
        return self._assembly().model

    def under(self, constraints: ConstraintSet) -> PairReader:
        """What reads the same model through the same budget, for other constraints.

        Args:
            constraints: which say what is asked of a forward pass.
        """
        return PairReader(constraints, self.engine, self._assembly, self._eval_budget, self.device)

    def conditions(self) -> dict[str, Any]:
        """Under which pairs are run: device, precision, attention, layout; plain values."""
        return self._assembly().conditions()

    def forward(self, model: nn.Module, batch: PairBatch) -> PairOutput:
        """The one forward pass: of training, of evaluation and of the constraints' values."""
        assembly = self._assembly()
        with self.engine.autocast():
            return pair_forward(
                model,
                assembly.head,
                batch,
                routers=assembly.routers,
                initial=self.constraints.policy,
                asked=self.constraints.objective.asked,
            )

    def measured(
        self, pairs: Sequence[TokenPair], most_pairs: int
    ) -> list[tuple[PairOutput, PairBatch]]:
        """What the model says of some pairs; all of it is there before any of it is counted.

        Every rank must call it as often; with others' micro-batches of weight 0 where ranks meet in
        every pass.

        Args:
            pairs: perhaps none.
            most_pairs: of a micro-batch.
        """
        self._assembly().prove(pairs)
        cut = partial(self._assembly().micro_batches, most_pairs=most_pairs)
        share = Share(pairs, cut, self._eval_budget, in_step=self.engine.in_step)
        share.fill_up(self.device)
        outputs = share.fitted(partial(self._outputs, share))
        return list(zip(outputs, share, strict=True))

    def _outputs(self, share: Share) -> list[PairOutput]:
        assembly = self._assembly()
        with assembly.running():
            return [self.forward(assembly.model, batch) for batch in share]

    def first_values(self, share: Share) -> Float[Tensor, " constraints"]:
        """Numerators of the constraints at a step's weights, over all ranks."""
        self._assembly().model.train()  # as the step itself will be taken, whatever came before it
        objective = self.constraints.objective
        with torch.no_grad():
            outputs = share.fitted(partial(self._outputs, share))
            found = [
                self.constraints.numerators(
                    output.logps, objective(output.logps, batch.margin), batch
                )[0]
                for output, batch in zip(outputs, share, strict=True)
            ]
        return ranks.add_up(torch.stack(found).sum(0))
