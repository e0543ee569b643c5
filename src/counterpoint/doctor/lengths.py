"""What lengths say about preferences, and how lengths are shown: functions of arrays.

Not here: what counts as length (``survey``), and when a bias is worth a warning (``of_data``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How much length alone says about which completion was preferred.

    Args:
        longer: share of rows whose chosen completion is the longer one, in [0, 1].
        shorter: share of rows whose chosen completion is the shorter one, in [0, 1].
        difference: mean length of chosen less that of rejected.
        auc: probability that a completion drawn from all chosen ones is longer than one drawn
            from all rejected ones, ties counting half; 0.5 says nothing, 1 says everything.
    """

    longer: float
    shorter: float
    difference: float
    auc: float


def length_bias(chosen: Lengths, rejected: Lengths) -> LengthBias:
    """Measure it.

    Args:
        chosen: length of each chosen completion, at least one.
        rejected: of each rejected one, in the same order.
    """
    ranked = np.sort(rejected)
    below = np.searchsorted(ranked, chosen, side="left")
    not_above = np.searchsorted(ranked, chosen, side="right")
    return LengthBias(
        longer=float((chosen > rejected).mean()),
        shorter=float((chosen < rejected).mean()),
        difference=float((chosen - rejected).mean()),
        auc=float((below + not_above).mean() / 2 / len(rejected)),
    )


def length_classes(lengths: Lengths) -> str:
    """Counts by powers of two, as text: "<64: 12, <128: 30"; empty classes are left out.

    Args:
        lengths: at least 0 each.
    """
    if not len(lengths):
        return "none"
    # a length of n has as many binary digits as the class that it is below, 2 ** digits
    digits = np.ceil(np.log2(lengths + 1)).astype(int)
    classes, counts = np.unique(digits, return_counts=True)
    return ", ".join(f"<{2**c:,}: {n:,}" for c, n in zip(classes, counts, strict=True))
