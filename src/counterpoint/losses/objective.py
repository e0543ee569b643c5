"""The whole objective: from ``PairLogps`` to one loss, by the row of its loss type.

    reward (sum | mean | log-odds, reshaped by alpha, or against a reference)
    -> gap -> preference loss
    + cpo_alpha x negative log-likelihood of the chosen completion, or of a gold one

A step's loss is a ratio of sums over all its pairs, so each micro-batch contributes its share
of the numerators over the step's denominators (``StepTotals``), known before the first
backward; how the pairs are cut, ordered or spread over ranks cannot matter.

Not here: the load-balancing loss of mixture-of-experts models (``forward.router``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import DataError, ModelError
from counterpoint.losses.adaptive import rejection
from counterpoint.losses.against_reference import optimistic_gap, positive_gap
from counterpoint.losses.anchored import apo_down_loss, apo_zero_loss, nca_loss
from counterpoint.losses.of_tokens import length_weighted, policy_weight
from counterpoint.losses.preference import hinge_loss, ipo_loss, repo_loss, sigmoid_loss
from counterpoint.losses.rewards import alphapo_reward, inverse_perplexity, log_odds
from counterpoint.objectives import DEFAULT_LOSS, LOSSES
from counterpoint.pair_facts import FactsAsked
from counterpoint.records import LossTerms, PairBatch, PairLogps, StepTotals


@dataclass(frozen=True, slots=True)
class Objective:
    """The resolved objective of a run.

    Args:
        loss_type: a key of ``objectives.LOSSES``.
        beta: scale of the reward, above 0; its loss's row says what it scales.
        gamma: margin in nats of scaled reward, at least 0.
        alpha: shape of AlphaPO's reward; 0 leaves the log-probability as it is.
        label_smoothing: probability in [0, 0.5) that a pair's label is flipped.
        cpo_alpha: weight of the NLL term, at least 0.
        nll_reduction: "token_mean" over the step's chosen tokens, or gold ones, or "sequence_sum",
            the mean over pairs of sums over tokens (Eq. 5 of arXiv:2401.08417).
        use_weighting: whether a pair's preference loss is weighed by how like the policy's own
            samples the pair is (WPO, arXiv:2406.11827).
        ld_alpha: weight in [0, 1] of tokens past the shorter completion of a pair (LD-DPO,
            arXiv:2409.06411), of losses that read sums; None: 1.
        arpo_scale: of ARPO's tau the factor of the exponential, above 0.
        arpo_eta: of ARPO's tau the rate of the exponential by nats a token, at least 0.
        dpop_lambda: DPO-Positive's weight of what the chosen completion has lost, at least 0.
    """

    loss_type: str = DEFAULT_LOSS
    beta: float = 0.1
    gamma: float = 0.0
    alpha: float = 0.0
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    nll_reduction: str = "token_mean"
    use_weighting: bool = False
    ld_alpha: float | None = None
    arpo_scale: float = 0.9
    arpo_eta: float = 0.4
    dpop_lambda: float = 0.0

    @classmethod
    def of(cls, options: Any) -> Objective:
        """That of a run.

        Args:
            options: a ``CPOConfig``, which knows its margin and its NLL term.
        """
        return cls(
            loss_type=options.loss_type,
            beta=options.beta,
            gamma=options.gamma,
            alpha=options.alpha,
            label_smoothing=options.label_smoothing,
            cpo_alpha=options.nll_weight,
            nll_reduction=options.nll_reduction,
            use_weighting=options.use_weighting,
            ld_alpha=options.ld_alpha,
            arpo_scale=options.arpo_scale,
            arpo_eta=options.arpo_eta,
            dpop_lambda=options.dpop_lambda,
        )

    def __call__(self, logps: PairLogps, margin: Float[Tensor, " pairs"]) -> LossTerms:
        """One preference loss and one NLL per pair, nothing averaged.

        Args:
            logps: what the model says of each pair.
            margin: extra margin of each pair, in nats of scaled reward.

        Returns:
            The terms, from which ``share`` makes the loss and the metrics their means.

        Raises:
            ModelError: CP337 for pairs without what the loss's reference gives them.
        """
        row, math = LOSSES[self.loss_type], math_of(self.loss_type)
        chosen_logps, rejected_logps = self.scores(logps)
        chosen, rejected = math.reward(chosen_logps, self), math.reward(rejected_logps, self)
        if row.needs_reference:
            reference = said_by_reference(logps)
            if row.per_token:
                reference = reference / torch.stack([logps.chosen_tokens, logps.rejected_tokens])
            chosen, rejected = chosen - reference[0], rejected - reference[1]
        scale = self.beta if row.beta_scales_gap else 1.0
        gap = scale * (chosen - rejected) - self.gamma - margin
        pairs = RewardedPairs(logps, chosen, rejected, self.gamma + margin, gap)
        likely, tokens = self._likely(logps)
        shown = self.beta if row.reads("beta") else 1.0
        preference = math.loss(pairs, self)
        if self.use_weighting:
            preference = preference * policy_weight(logps)
        return LossTerms(
            preference=preference,
            nll=-likely,
            nll_tokens=tokens,
            chosen_rewards=shown * chosen.detach(),
            rejected_rewards=shown * rejected.detach(),
            chosen_logps=chosen_logps.detach(),
            rejected_logps=rejected_logps.detach(),
        )

    def _likely(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Log-probability and tokens of each completion whose NLL the loss has."""
        # pairs of a set that a constraint brings have no gold one, and no part in the NLL
        if LOSSES[self.loss_type].gold and logps.gold is not None and logps.gold_tokens is not None:
            return logps.gold, logps.gold_tokens
        return logps.chosen, logps.chosen_tokens

    def scores(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Log-probability of chosen and of rejected as the loss reads it: the sum, or a token's."""
        if LOSSES[self.loss_type].per_token:
            return logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens
        return self.sums(logps)

    def sums(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Summed log-probabilities of chosen and of rejected, of the model or of a reference."""
        if self.ld_alpha is None:
            return logps.chosen, logps.rejected
        return length_weighted(logps, alpha=self.ld_alpha)

    @property
    def asked(self) -> FactsAsked:
        """What it asks the forward pass for beside sums of log-probabilities."""
        return FactsAsked(shared=self.ld_alpha is not None, likeness=self.use_weighting)

    def totals(self, batch: PairBatch) -> StepTotals:
        """What a batch adds to the denominators of its step.

        Raises:
            DataError: CP236 for pairs without the gold completion that the loss reads.
        """
        weight, tokens = batch.weight, batch.chosen_tokens
        if LOSSES[self.loss_type].gold:
            if batch.gold_tokens is None:
                raise DataError(
                    "CP236",
                    f"row {int(batch.row_ids[0])} was prepared without a gold completion, which "
                    f"loss_type {self.loss_type} makes likelier. Give the trainer the raw rows.",
                )
            tokens = batch.gold_tokens
        return StepTotals(
            weight=weight.sum(),
            nll=(weight * tokens).sum() if self.nll_reduction == "token_mean" else weight.sum(),
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
        row, math = LOSSES[self.loss_type], math_of(self.loss_type)
        logp = "mean log p" if row.per_token else "sum log p"
        scale = f"{self.beta:g} * " if row.beta_scales_gap else ""
        margin = f" - {self.gamma:g}" if self.gamma else ""
        weight = "w * " if self.use_weighting else ""
        reference = f" - {logp} of the reference" if row.needs_reference else ""
        if self.ld_alpha is not None:
            past = f", past the shorter completion's length times {self.ld_alpha:g}"
            # of a reference the one remark is for both
            logp, reference = (logp, reference + past) if reference else (logp + past, "")
        lines = [
            f"loss = mean over pairs of {weight}{self._in_brackets(math.formula(self))}",
            *([f"gap  = {scale}(r(chosen) - r(rejected)){margin}"] if row.has_gap else []),
            f"r(y) = {math.reward_formula(logp, self)}{reference}",
            *math.where(self),
        ]
        if self.use_weighting:
            lines.append(
                "w    = min(1, exp(u(chosen) + u(rejected))), held constant; "
                "u(y) = mean of log p - log sum p^2"
            )
        if self.cpo_alpha:
            which = "gold" if row.gold else "chosen"
            over = (
                f"mean over the step's {which} tokens of -log p"
                if self.nll_reduction == "token_mean"
                else f"mean over pairs of the {which} completion's sum of -log p"
            )
            lines[0] += f" + {self.cpo_alpha:g} * NLL"
            lines.append(f"NLL  = {over}")
        return "\n".join(lines)

    def _in_brackets(self, formula: str) -> str:
        return f"({formula})" if self.use_weighting else formula


@dataclass(frozen=True, slots=True)
class RewardedPairs:
    """What a loss is made of, one number a pair.

    Args:
        logps: what the model says of each pair.
        chosen: reward of the chosen completion, not yet scaled by beta.
        rejected: of the rejected one.
        margin: what the chosen must win by: gamma and the pair's own, in nats of scaled reward.
        gap: difference of the scaled rewards, the margin taken off.
    """

    logps: PairLogps
    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    gap: Float[Tensor, " pairs"]


def _shaped(logp: Tensor, objective: Objective) -> Tensor:
    return alphapo_reward(logp, alpha=objective.alpha)


def _shaped_in_words(logp: str, objective: Objective) -> str:
    alpha = objective.alpha
    return f"(1 - exp({-alpha:g} * {logp})) / {alpha:g}" if alpha else logp


@dataclass(frozen=True, slots=True)
class LossMath:
    """How a loss is computed.

    Args:
        loss: of rewarded pairs, one number a pair; most read their gap alone.
        formula: the same in words, with the objective's numbers.
        reward: of log-probabilities as the loss reads them, sums or means; by default the
            log-probability, reshaped where alpha is set.
        reward_formula: the same in words, of the word for the log-probability.
        where: further lines of the formula, for what ``formula`` names beside the gap.
    """

    loss: Callable[[RewardedPairs, Objective], Tensor]
    formula: Callable[[Objective], str]
    reward: Callable[[Tensor, Objective], Tensor] = _shaped
    reward_formula: Callable[[str, Objective], str] = _shaped_in_words
    where: Callable[[Objective], Sequence[str]] = lambda objective: ()


def _logistic_in_words(objective: Objective) -> str:
    smooth = objective.label_smoothing
    if not smooth:
        return "-log sigmoid(gap)"
    return f"-{1 - smooth:g} * log sigmoid(gap) - {smooth:g} * log sigmoid(-gap)"


LOGISTIC = LossMath(
    lambda pairs, o: sigmoid_loss(pairs.gap, label_smoothing=o.label_smoothing),
    _logistic_in_words,
)
HINGE = LossMath(lambda pairs, o: hinge_loss(pairs.gap), lambda o: "max(0, 1 - gap)")
SQUARED = LossMath(
    lambda pairs, o: ipo_loss(pairs.gap, beta=o.beta), lambda o: f"(gap - {1 / (2 * o.beta):g})^2"
)
ODDS_RATIO = LossMath(
    lambda pairs, o: o.beta * sigmoid_loss(pairs.gap),
    lambda o: f"-{o.beta:g} * log sigmoid(gap)",
    reward=lambda logp, o: log_odds(logp),
    reward_formula=lambda logp, o: f"log odds(exp({logp}))",
)
RECTIFIED = LossMath(lambda pairs, o: repo_loss(pairs.gap), lambda o: "max(0, -gap)")
INVERSE_PERPLEXITY = LossMath(
    lambda pairs, o: -pairs.gap,
    lambda o: "-gap",
    reward=lambda logp, o: inverse_perplexity(logp),
    reward_formula=lambda logp, o: f"exp({logp})",
)
ADAPTIVE = LossMath(
    lambda pairs, o: sigmoid_loss(_adaptive_gap(pairs, o), label_smoothing=o.label_smoothing),
    lambda o: _logistic_in_words(o).replace("gap", f"gap + {o.beta:g} * (1 - tau) * r(rejected)"),
    where=lambda o: [
        f"tau  = min({o.arpo_scale:g} * exp({o.arpo_eta:g} * |difference of mean log p|) - 1, 1)"
    ],
)


def _adaptive_gap(pairs: RewardedPairs, objective: Objective) -> Tensor:
    """The gap of which the rejected reward counts by ARPO's tau."""
    tau = rejection(pairs.logps, scale=objective.arpo_scale, eta=objective.arpo_eta)
    return pairs.gap + objective.beta * (1 - tau) * pairs.rejected


OPTIMISTIC = LossMath(
    lambda pairs, o: sigmoid_loss(
        optimistic_gap(pairs.gap, *said_by_reference(pairs.logps), beta=o.beta),
        label_smoothing=o.label_smoothing,
    ),
    lambda o: (
        _logistic_in_words(o).replace("gap", f"gap - {o.beta:g} * max(0, D)")
        + ", D the reference's sum log p(rejected) - sum log p(chosen)"
        + ("" if o.ld_alpha is None else ", weighed alike")
    ),
)
POSITIVE = LossMath(
    lambda pairs, o: sigmoid_loss(
        positive_gap(
            pairs.gap,
            pairs.chosen,
            said_by_reference(pairs.logps)[0],
            beta=o.beta,
            strength=o.dpop_lambda,
        ),
        label_smoothing=o.label_smoothing,
    ),
    lambda o: _logistic_in_words(o).replace(
        "gap", f"gap - {o.beta * o.dpop_lambda:g} * max(0, -r(chosen))"
    ),
)

ABOVE_AND_BELOW = LossMath(
    lambda pairs, o: apo_zero_loss(o.beta * pairs.chosen, o.beta * pairs.rejected),
    lambda o: f"1 - sigmoid({o.beta:g} * r(chosen)) + sigmoid({o.beta:g} * r(rejected))",
)
BOTH_BELOW = LossMath(
    lambda pairs, o: apo_down_loss(o.beta * pairs.chosen, pairs.gap),
    lambda o: f"sigmoid({o.beta:g} * r(chosen)) + 1 - sigmoid(gap)",
)
NOISE_CONTRASTIVE = LossMath(
    lambda pairs, o: nca_loss(o.beta * pairs.chosen, o.beta * pairs.rejected),
    lambda o: (
        f"-log sigmoid({o.beta:g} * r(chosen)) - 0.5 * log sigmoid({-o.beta:g} * r(chosen)) "
        f"- 0.5 * log sigmoid({-o.beta:g} * r(rejected))"
    ),
)


def said_by_reference(logps: PairLogps) -> Float[Tensor, "2 pairs"]:
    """What the run's reference gives chosen and rejected completions, in nats.

    Args:
        logps: of pairs that it was asked for.

    Raises:
        ModelError: CP337 where it was not.
    """
    if logps.reference is None:
        raise ModelError(
            "CP337",
            "the loss compares each pair with a reference, and these pairs have no "
            "log-probabilities of one. Name a model as the reference, which can be asked at any "
            "time; the initial policy can only before the first step.",
        )
    return logps.reference.T


def math_of(loss_type: str) -> LossMath:
    """How a loss of the table is computed."""
    named = LOSSES[loss_type].math
    found: LossMath = globals()[named] if isinstance(named, str) else named
    return found


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
