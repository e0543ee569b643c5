"""Keeps a non-finite step away from the weights, and says which rows made it.

Each micro-batch leaves a verdict a pair on the device; once a step, together with the norm of
the synchronised gradient, they are read: the step's one look back from device to host. All
ranks see the same verdict, so that they stop or skip together.

Not here: what stopping or skipping means (``trainer.stepping``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint import ranks
from counterpoint.errors import NonFiniteError
from counterpoint.objectives import ALPHAPO
from counterpoint.records import FILLER_ROW, LossTerms, PairBatch
from counterpoint.step.finite import UpdateGuard, on_every_rank

SHOWN = 20
"""Most row numbers in a message."""


@dataclass(frozen=True, slots=True)
class NotFinite:
    """What a step's verdict says.

    Args:
        seen: in words, the same on every rank.
        rows: this rank's pairs whose loss is not finite, by row number.
        gradient: True where no loss of any rank is to blame, only the gradient.
    """

    seen: str
    rows: frozenset[int]
    gradient: bool


class StepGuard:
    """Collects the verdicts of one step's micro-batches."""

    def __init__(self) -> None:
        self._rows: list[Int[Tensor, " pairs"]] = []
        self._finite: list[Bool[Tensor, " pairs"]] = []

    def watch(self, terms: LossTerms, batch: PairBatch, loss: Float[Tensor, ""]) -> None:
        """Take a micro-batch's verdict; reads nothing back.

        Args:
            terms: of its pairs.
            batch: the pairs.
            loss: its share, which sums that overflow make infinite though every term is finite.
        """
        self._rows.append(batch.row_ids)
        finite = torch.isfinite(terms.preference) & torch.isfinite(terms.nll)
        # where some term is to blame, its rows are; else all of them together
        self._finite.append(finite & (torch.isfinite(loss.detach()) | ~finite.all()))

    def discard(self) -> None:
        """The step is begun again: forget its verdicts."""
        self._rows, self._finite = [], []

    def close(
        self, grad_norm: Tensor | float | None, updates: UpdateGuard | None = None
    ) -> NotFinite | None:
        """End the step.

        Args:
            grad_norm: of the synchronised gradient; None leaves the gradient unchecked, for
                float16, whose loss scaler expects overflow and skips it itself.
            updates: whose pending verdict of the update before is read with this one.

        Returns:
            None for a finite step; else what was not.

        Raises:
            NonFiniteError: CP405 where the update before this step is to blame.
        """
        rows, finite = torch.cat(self._rows), torch.cat(self._finite)
        self.discard()
        verdict = finite.all()
        if grad_norm is not None:
            verdict = verdict & torch.isfinite(torch.as_tensor(grad_norm, device=finite.device))
        if updates is not None and updates.pending is not None:
            if on_every_rank(verdict & updates.pending.to(verdict.device), verdict.device):
                updates.pending = None
                return None
            updates.settle()
        if on_every_rank(verdict, verdict.device):
            return None
        # a filler is another rank's pair, which is looked at there
        bad = [row for row in rows[~finite].tolist() if row != FILLER_ROW]
        of_all = ranks.everywhere(bad)
        return NotFinite(
            _explain(of_all, ranks.everywhere(rows.tolist())), frozenset(bad), not of_all
        )


def non_finite_error(what: str, step: int, alpha: float, replay: str) -> NonFiniteError:
    """The error of a step that must not be applied.

    Args:
        what: was seen, from ``StepGuard.close``.
        step: number of the optimizer step, from 1.
        alpha: AlphaPO's shape; its reward is the likeliest to overflow.
        replay: where the step is kept, a sentence, or "".

    Returns:
        CP401, ready to raise.
    """
    hint = ""
    if alpha > 0:
        hint = (
            f" AlphaPO's reward grows as exp({alpha:g} x |log p|) and overflows on long sums: "
            f"use a loss that reads the mean log-probability (loss_type={ALPHAPO.name!r}) or a "
            "smaller alpha."
        )
    return NonFiniteError(
        "CP401",
        f"step {step}: {what} The weights are as they were before the step.{hint} {replay} "
        "nonfinite='skip' would leave such steps out.",
    )


def _explain(bad: list[int], every: list[int]) -> str:
    if bad:
        return f"the loss of {_name(bad)} is not finite."
    return f"the gradient is not finite, though every loss is; the step held {_name(every)}."


def _name(rows: list[int]) -> str:
    rows = sorted(set(rows) - {FILLER_ROW})
    shown = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
