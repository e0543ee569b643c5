"""What a completion is worth: rewards as functions of its log-probability, in nats.

Not here: the scale beta, margins, and what is made of two rewards (``preference``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def alphapo_reward(logp: Float[Tensor, " pairs"], *, alpha: float) -> Float[Tensor, " pairs"]:
    """Reward of AlphaPO (arXiv:2501.03884), (1 - p^-alpha) / alpha.

    Args:
        logp: log-probability of each completion, in nats; the paper takes the mean over tokens.
        alpha: shape of the reward; 0 gives ``logp`` itself, its limit.

    Returns:
        One reward per completion, rising with ``logp``; infinite where ``-alpha * logp`` passes
        the range of the exponential (709 in float64), never clamped.
    """
    if alpha == 0:
        return logp
    # p^-alpha = exp(-alpha log p); taking exp(log p) first would underflow to 0 below -104
    return -torch.expm1(-alpha * logp) / alpha


def log_odds(mean_logp: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Log-odds of ORPO (arXiv:2403.07691), log(p / (1 - p)) with p = exp(mean_logp).

    Args:
        mean_logp: mean log-probability of a completion's tokens, in nats, at most 0.

    Returns:
        One log-odds per completion; finite also where p rounds to 1.
    """
    # p = 1 has infinite odds; the nearest representable p below it keeps the ratio defined
    below_one = mean_logp.clamp(max=-torch.finfo(mean_logp.dtype).eps)
    # log(1 - p) = log(-expm1(log p)), exact for p near 1
    return below_one - torch.log(-torch.expm1(below_one))


def inverse_perplexity(mean_logp: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Reward of SimPER (arXiv:2502.00883), exp(mean_logp).

    Args:
        mean_logp: mean log-probability of a completion's tokens, in nats, at most 0.

    Returns:
        One number per completion, in [0, 1]; in float32 0, without a slope, below -103 nats.
    """
    return torch.exp(mean_logp)
