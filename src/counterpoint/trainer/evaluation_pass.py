"""One pass over an evaluation set, as sums: the loss is that of the whole set.

Not here: the loop over batches (``trainer``), what the metrics are (``metrics``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint.forward.pair_forward import PairOutput
from counterpoint.forward.router import RouterSums, add_sums, balancing_loss
from counterpoint.losses.objective import Objective
from counterpoint.metrics import MetricSums, means, pair_means
from counterpoint.records import PairBatch

PREFERENCE, NLL = "_preference", "_nll"


class EvaluationPass:
    """Collects batches; every rank must add the same number of them.

    Args:
        objective: of the run.
        balancing_weight: weight of the load-balancing loss, 0 for models without experts.
    """

    def __init__(self, objective: Objective, balancing_weight: float = 0.0) -> None:
        """Start with no pairs."""
        self.objective, self.balancing_weight = objective, balancing_weight
        self._sums = MetricSums()
        self._router: list[RouterSums] = []
        self._rewards: list[Tensor] = []

    def add(self, output: PairOutput, batch: PairBatch) -> None:
        """Take the forward pass of one batch; reads nothing back from the device."""
        terms = self.objective(output.logps, batch.margin)
        totals = self.objective.totals(batch)
        self._sums.add(pair_means(terms, output, batch))
        self._sums.add(
            {
                PREFERENCE: ((batch.weight * terms.preference).sum(), totals.weight),
                NLL: ((batch.weight * terms.nll).sum(), totals.nll),
            }
        )
        self._sums.apply()
        if output.router is not None:
            self._router.append(output.router)
        self._rewards.append(
            torch.stack([batch.row_ids, terms.chosen_rewards, terms.rejected_rewards], 1)[
                batch.counted
            ]
        )

    def metrics(self) -> tuple[dict[str, float], int]:
        """Metrics over all ranks, and how many pairs they are of."""
        sums = self._sums.read()
        found = means(sums)
        preference, nll = found.pop(PREFERENCE, 0.0), found.pop(NLL, 0.0)
        # an infinite NLL must not reach a loss that does not use it
        loss = preference + (self.objective.cpo_alpha * nll if self.objective.cpo_alpha else 0.0)
        if self._router:
            balance = self._balance()
            found["aux_loss"] = balance
            loss += self.balancing_weight * balance
        pairs = int(sums["rewards/chosen"][1]) if sums else 0
        return {"loss": loss, **found}, pairs

    def rewards(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Rewards ``[pairs, 2]`` of all ranks, chosen first, in the order of the rows."""
        mine = torch.cat(self._rewards).double().cpu().numpy()
        parts = [mine]
        if _distributed():
            parts = [mine] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
        every = np.concatenate(parts)
        return every[every[:, 0].argsort(kind="stable"), 1:]

    def _balance(self) -> float:
        sums = add_sums(self._router)
        if _distributed():
            flat = torch.cat([sums.sent, sums.probability, sums.tokens[None]])
            dist.all_reduce(flat)
            experts = len(sums.sent)
            sums = RouterSums(flat[:experts], flat[experts:-1], flat[-1])
        return float(balancing_loss(sums, sums))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
