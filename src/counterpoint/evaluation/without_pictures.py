"""How far pairs go by their pictures: their margins, and those with blank pictures.

1. A pair of which the margin hardly moves is one whose texts alone say which is preferred, or one
   whose picture the model does not see. What is learnt from it is not about the picture.
2. "Hardly" is less than a tenth of the median size of the margins, so that no scale of rewards
   has to be known.

Not here: measuring (the trainer), tables (``table``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from counterpoint.evaluation.bootstrap import Bootstrap, BootstrapEstimate, Resampling, mean
from counterpoint.evaluation.preferences import QUANTILES
from counterpoint.evaluation.scores import PairScores, aligned

HARDLY = 0.1
"""Share of the median size of a margin below which a margin has hardly moved."""

ROUNDED = 0.01
"""Share of that below which it is rounding that moves a margin."""

NAMED = 5
"""Rows that are named: those whose margin moves least."""

MOST = 0.5
"""Share of pairs above which it is said that most do not depend on their pictures."""


@dataclass(frozen=True, slots=True)
class Leaning:
    """A pair that goes by its picture as little as any.

    Args:
        row: its number in the data set.
        margin: of reward, with its pictures.
        blank: the same with blank ones.
    """

    row: int
    margin: float
    blank: float


@dataclass(frozen=True, slots=True)
class PictureEffect:
    """What pictures do to the margins of a set.

    Args:
        pairs: that show pictures.
        bound: in nats of scaled reward; a margin that moves less has hardly moved.
        measures: "accuracy" and "accuracy_blank" (ties half), "kept_preference", the share whose
            preferred completion is the same with blank pictures, "unmoved", the share whose
            margin has hardly moved, and "margin_change", the mean of the margin with pictures
            minus that with blank ones; each with its interval.
        change_quantiles: of the same difference, by share.
        least: the pairs whose margin moves least, the least first; where it is rounding that moves
            it, as they stand in their set.
    """

    pairs: int
    bound: float
    measures: Mapping[str, BootstrapEstimate]
    change_quantiles: Mapping[float, float]
    least: tuple[Leaning, ...]

    @property
    def mostly_unmoved(self) -> bool:
        """Whether more than half of such pairs hardly move, and that by more than chance."""
        return self.measures["unmoved"].low > MOST

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            **asdict(self),
            "change_quantiles": {f"{share:g}": v for share, v in self.change_quantiles.items()},
        }


def picture_effect(shown: PairScores, blank: PairScores, plan: Resampling) -> PictureEffect:
    """Compare pairs with themselves under blank pictures.

    Args:
        shown: of a set, with its pictures.
        blank: of those of its pairs that show pictures, at least one, with blank ones.
        plan: how intervals are made.
    """
    shown, blank = aligned(shown, blank)
    with np.errstate(all="ignore"):
        margins = shown.chosen_rewards - shown.rejected_rewards
        without = blank.chosen_rewards - blank.rejected_rewards
        changes = margins - without
        moves = np.abs(changes)
        bound = HARDLY * float(np.median(np.abs(margins)))
        quantiles = np.quantile(changes, QUANTILES)
    ratios = {
        "accuracy": mean((margins > 0) + 0.5 * (margins == 0), is_share=True),
        "accuracy_blank": mean((without > 0) + 0.5 * (without == 0), is_share=True),
        "kept_preference": mean(np.sign(margins) == np.sign(without), is_share=True),
        "unmoved": mean(moves <= bound, is_share=True),
        "margin_change": mean(changes),
    }
    order = np.argsort(np.where(moves <= ROUNDED * bound, 0.0, moves), kind="stable")[:NAMED]
    return PictureEffect(
        pairs=len(shown),
        bound=bound,
        measures=Bootstrap(shown.prompts, plan).estimates(ratios),
        change_quantiles=dict(zip(QUANTILES, map(float, quantiles), strict=True)),
        least=tuple(
            Leaning(int(shown.rows[n]), float(margins[n]), float(without[n])) for n in order
        ),
    )
