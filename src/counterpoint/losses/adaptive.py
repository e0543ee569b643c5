"""ARPO (arXiv:2410.03115): how much of the rejected completion a pair may push down.

Chosen and rejected translations are often nearly the same, and pushing one down takes the other
along. So the rejected one counts by τ, which grows with the distance between the two.

Not here: the loss of the gap (``preference``).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.records import PairLogps


def rejection(logps: PairLogps, *, scale: float, eta: float) -> Float[Tensor, " pairs"]:
    """τ = min(scale * exp(eta * z) - 1, 1), z the distance of the mean log-probabilities.

    It is a function of the policy and carries a gradient where it is below 1. Of two completions
    of one mean it is scale - 1: 0 in the paper (scale 1, eta 1.5), and -0.1 in the authors' code
    (0.9, 0.4), where such a rejected completion is pulled up a little.

    Args:
        logps: what the model says of each pair.
        scale: factor of the exponential, above 0.
        eta: rate of the exponential by nats a token, at least 0.

    Returns:
        One number per pair, in [scale - 1, 1].
    """
    means = logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens
    # bounded before the exponential, which would overflow, and give a gradient of 0 x inf
    exponent = (eta * (means[0] - means[1]).abs()).clamp(max=math.log(2 / scale))
    return scale * torch.exp(exponent) - 1
