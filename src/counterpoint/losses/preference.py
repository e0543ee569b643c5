"""Preference losses: one number per pair from the gap between two rewards.

The gap is the reward of the chosen completion minus that of the rejected one, already scaled
and with every margin taken off, so that a gap of 0 means "as good as asked".

Not here: averaging, weights, and the NLL term (``objective``).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sigmoid_loss(
    gap: Float[Tensor, " pairs"], *, label_smoothing: float = 0.0
) -> Float[Tensor, " pairs"]:
    """Logistic loss of CPO (arXiv:2401.08417) and SimPO (arXiv:2405.14734).

    Args:
        gap: reward of chosen minus reward of rejected, in nats, scaled and offset.
        label_smoothing: probability in [0, 0.5) that a pair's label is flipped.

    Returns:
        One loss per pair, not averaged; log 2 where the gap is zero.
    """
    # log(1 - sigmoid(x)) = log_sigmoid(-x)
    kept, flipped = -F.logsigmoid(gap), -F.logsigmoid(-gap)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def hinge_loss(gap: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Hinge loss of SLiC (arXiv:2305.10425): nothing once the gap reaches 1 nat.

    Args:
        gap: reward of chosen minus reward of rejected, in nats, scaled and offset.

    Returns:
        One loss per pair, at least 0; 1 where the gap is zero.
    """
    return F.relu(1 - gap)


def ipo_loss(gap: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """Squared loss of IPO (arXiv:2310.12036), which pulls the gap to 1 / (2 beta).

    Args:
        gap: mean log-probability of chosen minus that of rejected, in nats, not scaled.
        beta: strength of the regularisation, above 0 (tau in the paper).

    Returns:
        One loss per pair, at least 0; 0 where the gap is 1 / (2 beta).
    """
    return (gap - 1 / (2 * beta)).square()


def repo_loss(gap: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Rectified loss of RePO (arXiv:2503.07426): nothing once the margin is won.

    Args:
        gap: mean log-probability of chosen minus that of rejected minus gamma, in nats.

    Returns:
        One loss per pair, at least 0; 0 where the gap is zero or more.
    """
    return F.relu(-gap)
