"""Scores of written texts, of one model or of two: means, their difference, and who wins.

1. A text that a scorer gives no number is left out of its mean and counted. Two models are compared
   on the prompts for which both have one.
2. A model wins a prompt where its text scores higher, or lower where the score is a penalty; equal
   scores are half a win. The share of wins says how often, and no more: it does not depend on the
   unit of the score.

Not here: the scores (``scoring``), drawing prompts (``bootstrap``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from counterpoint.evaluation.bootstrap import Bootstrap, BootstrapEstimate, Ratio, Resampling
from counterpoint.evaluation.scores import Numbers

TextScores = Mapping[str, Sequence[float | None]]
"""By scorer, a number for each text, or None."""


@dataclass(frozen=True, slots=True)
class ScoredMean:
    """What a scorer says of the texts of one model.

    Args:
        mean: of the texts that it gave a number.
        scored: how many these are.
        without: how many others there are.
    """

    mean: BootstrapEstimate
    scored: int
    without: int


@dataclass(frozen=True, slots=True)
class ScoredChange:
    """What a scorer says of two models.

    Args:
        change: after minus before, on prompts for which both have a number.
        wins: share of these prompts that the model after wins; ties count half.
        prompts: how many they are.
        lower_is_better: whether the lower score wins.
    """

    change: BootstrapEstimate
    wins: BootstrapEstimate
    prompts: int
    lower_is_better: bool = False


def score_means(scores: TextScores, plan: Resampling) -> dict[str, ScoredMean]:
    """The mean of each scorer, with its interval over prompts.

    Args:
        scores: of the texts of one model, one a prompt.
        plan: how intervals are made.
    """
    found = {}
    for name, numbers in scores.items():
        values, has = _columns(numbers)
        estimate = _bootstrap(has, plan).estimates({name: Ratio(values, has)})[name]
        found[name] = ScoredMean(estimate, int(has.sum()), int((1 - has).sum()))
    return found


def score_changes(
    before: TextScores, after: TextScores, plan: Resampling, penalties: Collection[str] = ()
) -> dict[str, ScoredChange]:
    """The difference of each scorer's means, and the share of wins, with intervals over prompts.

    Args:
        before: scores of one model's texts.
        after: those of another, to the same prompts in the same order.
        plan: how intervals are made.
        penalties: names of scorers whose scores are better when lower.
    """
    found = {}
    for name, numbers in after.items():
        (old, had), (new, has) = _columns(before[name]), _columns(numbers)
        both = had * has
        bootstrap = _bootstrap(both, plan)
        one, other = {name: Ratio(old * both, both)}, {name: Ratio(new * both, both)}
        lower = name in penalties
        won = both * (((new < old) if lower else (new > old)) + 0.5 * (new == old))
        wins = bootstrap.estimates({name: Ratio(won, both, is_share=True)})[name]
        change = bootstrap.differences(one, other)[name]
        found[name] = ScoredChange(change, wins, int(both.sum()), lower)
    return found


def _columns(numbers: Sequence[float | None]) -> tuple[Numbers, Numbers]:
    """Numbers with 0 where there is none, and 1 where there is one."""
    has = np.array([one is not None for one in numbers], dtype=np.float64)
    return np.array([one or 0.0 for one in numbers], dtype=np.float64), has


def _bootstrap(texts: Numbers, plan: Resampling) -> Bootstrap:
    return Bootstrap(np.arange(len(texts)), plan)
