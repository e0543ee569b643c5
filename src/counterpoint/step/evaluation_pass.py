"""One pass over an evaluation set, as sums: the loss is that of the whole set.

Beside the sums a few numbers a pair are kept, for statistics over pairs.

Not here: the loop over batches (``trainer``), what the metrics are (``metrics``), the statistics
(``evaluation``).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from counterpoint import ranks
from counterpoint.evaluation.scores import PairScores
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.forward.router import RouterSums, add_sums, balancing_loss
from counterpoint.metrics import MetricSums, means, pair_means
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.loss import StepLoss

PREFERENCE, NLL = "_preference", "_nll"


class EvaluationPass:
    """Collects batches; every rank must add the same number of them.

    Args:
        loss: of the run.
        constraints: of the run, to be measured as well.
        rows: the set's name, by which constraints know its rows; None: they have not seen them.
    """

    def __init__(self, loss: StepLoss, constraints: ConstraintSet, rows: str | None = None) -> None:
        self.objective, self.balancing_weight = loss.objective, loss.balancing_weight
        self.constraints, self._rows = constraints, rows
        self._sums = MetricSums()
        self._router: list[RouterSums] = []
        self._scores: list[Tensor] = []
        self._prompts: dict[int, int] = {}

    def note(self, pairs: Iterable[TokenPair]) -> None:
        """Remember which rows share a prompt."""
        for pair in pairs:
            ids = np.asarray(pair.prompt, dtype=np.int64).tobytes()
            self._prompts[pair.row] = int.from_bytes(blake2b(ids, digest_size=7).digest(), "big")

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
        self._sums.add(self.constraints.held_out_sums(output.logps, terms, batch, self._rows))
        self._sums.apply()
        if output.router is not None:
            self._router.append(output.router)
        logps = output.logps
        kept = [
            batch.row_ids,
            terms.chosen_rewards,
            terms.rejected_rewards,
            logps.chosen.detach(),
            logps.rejected.detach(),
            logps.chosen_tokens,
            logps.rejected_tokens,
        ]
        self._scores.append(torch.stack(kept, 1)[batch.counted])

    def metrics(self) -> tuple[dict[str, float], int]:
        """Metrics over all ranks, and how many pairs they are of."""
        sums = self._sums.read()
        found = means(sums)
        preference, nll = found.pop(PREFERENCE, 0.0), found.pop(NLL, 0.0)
        # an infinite NLL must not reach a loss that does not use it
        loss = preference + (self.objective.cpo_alpha * nll if self.objective.cpo_alpha else 0.0)
        found |= self.constraints.violations(found)
        if self._router:
            balance = self._balance()
            found["aux_loss"] = balance
            loss += self.balancing_weight * balance
        pairs = int(sums["rewards/chosen"][1]) if sums else 0
        return {"loss": loss, **found}, pairs

    def scores(self) -> PairScores:
        """What every pair of all ranks was given, in the order of the rows.

        Every rank must call it; the rows of all batches must have been noted.
        """
        mine = torch.cat(self._scores).double().cpu().numpy()
        prompts = np.array([self._prompts[int(row)] for row in mine[:, 0]], dtype=np.int64)
        parts = ranks.gathered((mine, prompts))
        every = np.concatenate([numbers for numbers, _ in parts])
        order = every[:, 0].argsort(kind="stable")
        columns = every[order].T
        return PairScores(
            rows=columns[0].astype(np.int64),
            prompts=np.concatenate([each for _, each in parts])[order],
            chosen_rewards=columns[1],
            rejected_rewards=columns[2],
            chosen_logps=columns[3],
            rejected_logps=columns[4],
            chosen_tokens=columns[5].astype(np.int64),
            rejected_tokens=columns[6].astype(np.int64),
        )

    def _balance(self) -> float:
        sums = add_sums(self._router)
        flat = ranks.add_up(torch.cat([sums.sent, sums.probability, sums.tokens[None]]))
        experts = len(sums.sent)
        sums = RouterSums(flat[:experts], flat[experts:-1], flat[-1])
        return float(balancing_loss(sums, sums))
