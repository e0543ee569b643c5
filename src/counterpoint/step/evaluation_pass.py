"""One pass over an evaluation set, as sums: the loss is that of the whole set.

Beside the sums, what is kept of each pair is whether it was won and which prompt it has, for the
interval of the accuracy: ranks share out the prompts and add up how they came out. Only where the
scores of pairs are asked for is more kept, and gathered.

Not here: the loop over batches (``trainer``), what the metrics are (``metrics``), the statistics
(``evaluation``).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from counterpoint import ranks
from counterpoint.evaluation.bootstrap import BootstrapEstimate
from counterpoint.evaluation.preferences import accuracy_interval, joined_outcomes, outcomes_of
from counterpoint.evaluation.scores import Counts, PairScores
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.forward.router import RouterSums, add_sums, balancing_loss
from counterpoint.metrics import MetricSums, means, pair_means
from counterpoint.records import FILLER_ROW, PairBatch, TokenPair
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.loss import StepLoss

PREFERENCE, NLL = "_preference", "_nll"


class EvaluationPass:
    """Collects batches; every rank must add the same number of them.

    Args:
        loss: of the run.
        constraints: of the run, to be measured as well.
        rows: the set's name, by which constraints know its rows; None: they have not seen them.
        keep_scores: keep what ``scores`` gives.
    """

    def __init__(
        self,
        loss: StepLoss,
        constraints: ConstraintSet,
        rows: str | None = None,
        *,
        keep_scores: bool = False,
    ) -> None:
        self.objective, self.balancing_weight = loss.objective, loss.balancing_weight
        self.constraints, self._rows = constraints, rows
        self._sums = MetricSums()
        self._router: list[RouterSums] = []
        self._keep_scores = keep_scores
        self._won: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._pairs: list[Counts] = []
        """Prompt and row of the pairs of each batch."""

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
        real = [pair for pair in batch.pairs if pair.row != FILLER_ROW]
        about = [(_prompt_number(pair), pair.row) for pair in real]
        self._pairs.append(np.array(about, dtype=np.int64).reshape(-1, 2))
        self._won.append((terms.chosen_rewards > terms.rejected_rewards)[batch.counted])
        if self._keep_scores:
            logps = output.logps
            kept = [
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

    def accuracy(self) -> BootstrapEstimate:
        """The accuracy over all ranks with its interval; every rank must call it."""
        own = torch.cat(self._won)
        prompts = torch.from_numpy(np.concatenate(self._pairs)[:, 0]).to(own.device)
        mine = torch.stack([prompts, own.long()], 1)
        # all pairs of a prompt go to one rank, which its number says
        owner = mine[:, 0] % ranks.count()
        parts = ranks.exchanged([mine[owner == rank] for rank in range(ranks.count())])
        numbers, won = torch.cat(parts).cpu().numpy().T
        return accuracy_interval(joined_outcomes(ranks.gathered(outcomes_of(numbers, won))))

    def scores(self) -> PairScores:
        """What every pair of all ranks was given, in the order of the rows; all on every rank.

        Every rank must call it, of a pass that keeps them.
        """
        mine = torch.cat(self._scores).double().cpu().numpy()
        parts = ranks.gathered((mine, np.concatenate(self._pairs)))
        every = np.concatenate([numbers for numbers, _ in parts])
        prompts, rows = np.concatenate([about for _, about in parts]).T
        order = rows.argsort(kind="stable")
        columns = every[order].T
        return PairScores(
            rows=rows[order],
            prompts=prompts[order],
            chosen_rewards=columns[0],
            rejected_rewards=columns[1],
            chosen_logps=columns[2],
            rejected_logps=columns[3],
            chosen_tokens=columns[4].astype(np.int64),
            rejected_tokens=columns[5].astype(np.int64),
        )

    def _balance(self) -> float:
        sums = add_sums(self._router)
        flat = ranks.add_up(torch.cat([sums.sent, sums.probability, sums.tokens[None]]))
        experts = len(sums.sent)
        sums = RouterSums(flat[:experts], flat[experts:-1], flat[-1])
        return float(balancing_loss(sums, sums))


def _prompt_number(pair: TokenPair) -> int:
    """A number that is equal where prompts are, and else different: 56 bits of a hash."""
    ids = np.asarray(pair.prompt, dtype=np.int64).tobytes()
    shown = "".join(picture.digest for picture in pair.pictures)  # one id stands for any picture
    return int.from_bytes(blake2b(ids + shown.encode(), digest_size=7).digest(), "big")
