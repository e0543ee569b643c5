"""The whole objective: from ``PairLogps`` to one loss, a row of a table for each loss type.

    reward (sum | mean | log-odds, reshaped by alpha) -> gap -> preference loss
    + cpo_alpha x negative log-likelihood of the chosen completion

A step's loss is a ratio of sums over all its pairs, so each micro-batch contributes its share
of the numerators over the step's denominators (``StepTotals``), known before the first
backward; how the pairs are cut, ordered or spread over ranks cannot matter.

Not here: the load-balancing loss of mixture-of-experts models (``forward.router``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.losses.preference import hinge_loss, ipo_loss, repo_loss, sigmoid_loss
from counterpoint.losses.rewards import alphapo_reward, log_odds
from counterpoint.records import LossTerms, PairBatch, PairLogps, StepTotals


@dataclass(frozen=True, slots=True)
class Objective:
    """The resolved objective of a run.

    Args:
        loss_type: a key of ``LOSSES``.
        beta: scale of the reward, above 0; see ``LOSSES`` for what it scales.
        gamma: margin in nats of scaled reward, at least 0.
        alpha: shape of AlphaPO's reward; 0 leaves the log-probability as it is.
        label_smoothing: probability in [0, 0.5) that a pair's label is flipped.
        cpo_alpha: weight of the NLL term, at least 0.
        nll_reduction: "token_mean" over the step's chosen tokens, or "sequence_sum", the mean
            over pairs of sums over tokens (Eq. 5 of arXiv:2401.08417).
    """

    loss_type: str = "sigmoid"
    beta: float = 0.1
    gamma: float = 0.0
    alpha: float = 0.0
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    nll_reduction: str = "token_mean"

    def __call__(self, logps: PairLogps, margin: Float[Tensor, " pairs"]) -> LossTerms:
        """One preference loss and one NLL per pair, nothing averaged.

        Args:
            logps: what the model says of each pair.
            margin: extra margin of each pair, in nats of scaled reward.

        Returns:
            The terms, from which ``share`` makes the loss and the metrics their means.
        """
        rule = LOSSES[self.loss_type]
        chosen_logps, rejected_logps = self.scores(logps)
        chosen, rejected = self._reward(chosen_logps), self._reward(rejected_logps)
        scale = self.beta if rule.beta_scales_gap else 1.0
        gap = scale * (chosen - rejected) - self.gamma - margin
        shown = 1.0 if self.loss_type == "repo" else self.beta
        return LossTerms(
            preference=rule.loss(gap, self),
            nll=-logps.chosen,
            chosen_rewards=shown * chosen.detach(),
            rejected_rewards=shown * rejected.detach(),
            chosen_logps=chosen_logps.detach(),
            rejected_logps=rejected_logps.detach(),
        )

    def scores(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Log-probability of chosen and of rejected as the loss reads it: the sum, or a token's."""
        if not LOSSES[self.loss_type].per_token:
            return logps.chosen, logps.rejected
        return logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens

    def _reward(self, logp: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        if self.loss_type == "orpo":
            return log_odds(logp)
        return alphapo_reward(logp, alpha=self.alpha)

    def totals(self, batch: PairBatch) -> StepTotals:
        """What a batch adds to the denominators of its step."""
        weight = batch.weight
        tokens = weight * batch.chosen_tokens
        return StepTotals(
            weight=weight.sum(),
            nll=tokens.sum() if self.nll_reduction == "token_mean" else weight.sum(),
        )

    def share(
        self, terms: LossTerms, weight: Float[Tensor, " pairs"], totals: StepTotals
    ) -> Float[Tensor, ""]:
        """The share of the step's loss that these pairs carry.

        Args:
            terms: of the pairs of one micro-batch.
            weight: their factors, at least 0.
            totals: denominators of the whole step, over micro-batches and ranks.

        Returns:
            A scalar; the shares of a step's micro-batches add up to the step's loss.
        """
        preference = (weight * terms.preference).sum() / positive(totals.weight)
        if self.cpo_alpha == 0:
            # not 0 x NLL: an infinite NLL times 0 is NaN
            return preference
        return preference + self.cpo_alpha * (weight * terms.nll).sum() / positive(totals.nll)

    def formula(self) -> str:
        """The objective as a formula with its numbers, for logs and for people."""
        rule = LOSSES[self.loss_type]
        logp = "mean log p" if rule.per_token else "sum log p"
        reward = logp
        if self.loss_type == "orpo":
            reward = f"log odds(exp({logp}))"
        elif self.alpha:
            reward = f"(1 - exp({-self.alpha:g} * {logp})) / {self.alpha:g}"
        scale = f"{self.beta:g} * " if rule.beta_scales_gap else ""
        margin = f" - {self.gamma:g}" if self.gamma else ""
        lines = [
            f"loss = mean over pairs of {rule.formula(self)}",
            f"gap  = {scale}(r(chosen) - r(rejected)){margin}",
            f"r(y) = {reward}",
        ]
        if self.cpo_alpha:
            over = (
                "mean over the step's chosen tokens of -log p"
                if self.nll_reduction == "token_mean"
                else "mean over pairs of the chosen completion's sum of -log p"
            )
            lines[0] += f" + {self.cpo_alpha:g} * NLL"
            lines.append(f"NLL  = {over}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LossRule:
    """One row of the table of losses.

    Args:
        per_token: whether the reward reads the mean over a completion's tokens, or their sum.
        beta_scales_gap: whether beta multiplies the difference of rewards.
        loss: from the gap of each pair to its loss.
        formula: the same in words, with the objective's numbers.
    """

    per_token: bool
    beta_scales_gap: bool
    loss: Callable[[Tensor, Objective], Tensor]
    formula: Callable[[Objective], str]


def _logistic(gap: Tensor, objective: Objective) -> Tensor:
    return sigmoid_loss(gap, label_smoothing=objective.label_smoothing)


def _logistic_formula(objective: Objective) -> str:
    smooth = objective.label_smoothing
    if not smooth:
        return "-log sigmoid(gap)"
    return f"-{1 - smooth:g} * log sigmoid(gap) - {smooth:g} * log sigmoid(-gap)"


def _simpo_rule() -> LossRule:
    return LossRule(True, True, _logistic, _logistic_formula)


LOSSES: Mapping[str, LossRule] = MappingProxyType(
    {
        "sigmoid": LossRule(False, True, _logistic, _logistic_formula),
        "hinge": LossRule(False, True, lambda gap, o: hinge_loss(gap), lambda o: "max(0, 1 - gap)"),
        "ipo": LossRule(
            True,
            False,
            lambda gap, o: ipo_loss(gap, beta=o.beta),
            lambda o: f"(gap - {1 / (2 * o.beta):g})^2",
        ),
        "simpo": _simpo_rule(),
        "alphapo": _simpo_rule(),
        "orpo": LossRule(
            True,
            False,
            lambda gap, o: o.beta * sigmoid_loss(gap),
            lambda o: f"-{o.beta:g} * log sigmoid(gap)",
        ),
        "repo": LossRule(True, False, lambda gap, o: repo_loss(gap), lambda o: "max(0, -gap)"),
    }
)
"""Loss type -> its rule; config.LOSS_TYPES lists the same names."""


def sum_totals(parts: list[StepTotals]) -> StepTotals:
    """Denominators of several micro-batches together."""
    return StepTotals(
        weight=torch.stack([part.weight for part in parts]).sum(),
        nll=torch.stack([part.nll for part in parts]).sum(),
    )


def positive(total: Tensor) -> Tensor:
    """A denominator, 1 in place of 0."""
    # a step of weightless pairs has a loss of 0 / 0; it should be 0
    return torch.where(total > 0, total, torch.ones_like(total))
