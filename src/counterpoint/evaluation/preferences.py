"""Whether a model prefers what people chose, by how much, and what length alone would explain.

1. A tie is half a win, so that a model that knows nothing has 0.5; ties are counted beside it.
2. The reward is the objective's. Beside it stand two that need no objective: the summed
   log-probability, and its mean over tokens, which a longer completion does not lose by.
3. "Longer wins" is what a rule would get that prefers the completion of more tokens. An accuracy
   means little where this one is as high, or where its bins by length do.

Weights and margins of rows count in the loss, not here.

Not here: intervals themselves (``bootstrap``), tables (``table``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from counterpoint.evaluation.bootstrap import (
    Bootstrap,
    BootstrapEstimate,
    Ratio,
    Resampling,
    mean,
    share_of_prompts,
)
from counterpoint.evaluation.scores import Counts, Numbers, PairScores, aligned

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the margins of reward."""

LENGTH_EDGES = (-64, -16, -4, -1, 0, 3, 15, 63)
"""Highest difference of each bin but the last: tokens of chosen minus tokens of rejected."""

IN_TRAINING = Resampling(resamples=1000)
"""How the interval of a training log is made."""


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Pairs of like difference of length.

    Args:
        low: least difference, tokens of chosen minus tokens of rejected; None: no limit.
        high: greatest difference; None: no limit.
        pairs: how many, at least 1.
        accuracy: of the reward, ties counted half.
        longer_wins: what the rule gets, in [0, 1].
    """

    low: int | None
    high: int | None
    pairs: int
    accuracy: BootstrapEstimate
    longer_wins: float


@dataclass(frozen=True, slots=True)
class Preferences:
    """The statistics of one set.

    Args:
        pairs: how many.
        prompts: how many different ones.
        ties: pairs of equal rewards.
        measures: by the names of ``score_ratios``, each with its interval.
        margin_quantiles: of chosen minus rejected reward, by share.
        by_length: in rising order, without empty bins.
    """

    pairs: int
    prompts: int
    ties: int
    measures: Mapping[str, BootstrapEstimate]
    margin_quantiles: Mapping[float, float]
    by_length: tuple[LengthBin, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            **asdict(self),
            "margin_quantiles": {f"{share:g}": v for share, v in self.margin_quantiles.items()},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the pairs that both were tried on.

    Args:
        pairs: how many.
        before: of one model, by the names of ``score_ratios``.
        after: of the other.
        differences: after minus before, with the interval of the difference.
    """

    pairs: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    differences: Mapping[str, BootstrapEstimate]


def judge(scores: PairScores, plan: Resampling) -> Preferences:
    """Every statistic of a set.

    Args:
        scores: of at least one pair.
        plan: how intervals are made.
    """
    bins = _bins(scores)
    ratios = score_ratios(scores)
    wins = ratios["accuracy"].top
    within = {
        str(place): Ratio(wins * mask, mask.astype(np.float64), is_share=True)
        for place, (_, _, mask) in enumerate(bins)
    }
    bootstrap = Bootstrap(scores.prompts, plan)
    found = bootstrap.estimates({**ratios, **within})
    margins = scores.chosen_rewards - scores.rejected_rewards
    longer = ratios["longer_wins"].top
    with np.errstate(all="ignore"):
        quantiles = np.quantile(margins, QUANTILES)
    return Preferences(
        pairs=len(scores),
        prompts=bootstrap.prompts,
        ties=int((scores.chosen_rewards == scores.rejected_rewards).sum()),
        measures={name: found[name] for name in ratios},
        margin_quantiles=dict(zip(QUANTILES, map(float, quantiles), strict=True)),
        by_length=tuple(
            LengthBin(low, high, int(mask.sum()), found[str(place)], float(longer[mask].mean()))
            for place, (low, high, mask) in enumerate(bins)
        ),
    )


def compare(before: PairScores, after: PairScores, plan: Resampling) -> Comparison:
    """Two models on the same pairs.

    Args:
        before: of one model.
        after: of the other, on the same set; rows that only one of them has are left out.
        plan: how intervals are made.
    """
    before, after = aligned(before, after)
    one, other = score_ratios(before), score_ratios(after)
    return Comparison(
        pairs=len(before),
        before={name: ratio.value for name, ratio in one.items()},
        after={name: ratio.value for name, ratio in other.items()},
        differences=Bootstrap(after.prompts, plan).differences(one, other),
    )


def outcomes_of(prompts: Counts, won: Any) -> Counts:
    """How many prompts came out in each way, from which the accuracy's interval follows.

    Args:
        prompts: a number for each pair's prompt, at least one pair.
        won: whether each pair's chosen completion has the higher reward.

    Returns:
        A row for each way, in rising order: pairs of a prompt that won, its pairs, and how many
        prompts came out so.
    """
    _, place, pairs = np.unique(prompts, return_inverse=True, return_counts=True)
    wins = np.bincount(place, weights=won, minlength=len(pairs)).astype(np.int64)
    return joined_outcomes([np.stack([wins, pairs, np.ones_like(pairs)], 1)])


def joined_outcomes(parts: Sequence[Counts]) -> Counts:
    """The outcomes of sets of prompts that have none in common, as of one set."""
    every = np.concatenate([np.empty((0, 3), np.int64), *parts])
    ways, place = np.unique(every[:, :2], axis=0, return_inverse=True)
    prompts = np.zeros(len(ways), np.int64)
    np.add.at(prompts, place.reshape(-1), every[:, 2])
    return np.concatenate([ways, prompts[:, None]], 1)


def accuracy_interval(outcomes: Counts) -> BootstrapEstimate:
    """The accuracy of the training log, in which a tie is a loss as in TRL, with its interval.

    Args:
        outcomes: from ``outcomes_of``, of at least one pair.
    """
    return share_of_prompts(outcomes, IN_TRAINING)


def score_ratios(scores: PairScores) -> dict[str, Ratio]:
    """The statistics that are ratios of sums, by name.

    Accuracies are shares; rewards and margins are in nats of scaled reward; log-probabilities
    and the NLL are in nats a token.

    Args:
        scores: of at least one pair.
    """
    s = scores
    chosen_tokens, rejected_tokens = (
        tokens.astype(np.float64) for tokens in (s.chosen_tokens, s.rejected_tokens)
    )
    chosen_mean, rejected_mean = s.chosen_logps / chosen_tokens, s.rejected_logps / rejected_tokens
    with np.errstate(all="ignore"):
        margins = s.chosen_rewards - s.rejected_rewards
    return {
        "accuracy": _wins(s.chosen_rewards, s.rejected_rewards),
        "accuracy_sum_logps": _wins(s.chosen_logps, s.rejected_logps),
        "accuracy_mean_logps": _wins(chosen_mean, rejected_mean),
        "longer_wins": _wins(chosen_tokens, rejected_tokens),
        "margin": mean(margins),
        "chosen_reward": mean(s.chosen_rewards),
        "rejected_reward": mean(s.rejected_rewards),
        "chosen_logps_per_token": Ratio(s.chosen_logps, chosen_tokens),
        "rejected_logps_per_token": Ratio(s.rejected_logps, rejected_tokens),
        "chosen_nll_per_token": Ratio(-s.chosen_logps, chosen_tokens),
        "chosen_perplexity": Ratio(-s.chosen_logps, chosen_tokens, curve=np.exp),
    }


def _wins(chosen: Numbers, rejected: Numbers) -> Ratio:
    # a reward that is no number wins against nothing and ties with nothing
    return mean((chosen > rejected) + 0.5 * (chosen == rejected), is_share=True)


def _bins(scores: PairScores) -> list[tuple[int | None, int | None, Any]]:
    """Limits and mask of each bin that holds a pair."""
    longer_by = scores.chosen_tokens - scores.rejected_tokens
    lows = [None, *(edge + 1 for edge in LENGTH_EDGES)]
    found = []
    for low, high in zip(lows, [*LENGTH_EDGES, None], strict=True):
        above = longer_by >= (-math.inf if low is None else low)
        mask = above & (longer_by <= (math.inf if high is None else high))
        if mask.any():
            found.append((low, high, mask))
    return found
