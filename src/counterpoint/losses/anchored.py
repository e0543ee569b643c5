"""Losses that ask where each completion stands against the reference, not which one stands higher.

A reward is beta times the log-probability of a completion minus that under the reference, so that
0 is where the reference has it. Losses of the gap let both completions sink together; these see it.

Not here: losses of the gap alone (``preference``), the rewards, averaging and weights
(``objective``).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def apo_zero_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """APO-zero (arXiv:2408.06266, Eq. 7): the chosen is to rise, the rejected to fall.

    Args:
        chosen: scaled reward of the chosen completion, in nats.
        rejected: of the rejected one.

    Returns:
        One loss per pair in (0, 2), not averaged; 1 where both are where the reference has them.
    """
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where x is large
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down_loss(
    chosen: Float[Tensor, " pairs"], gap: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """APO-down (arXiv:2408.06266, Eq. 8): both are to fall, the rejected by more.

    Args:
        chosen: scaled reward of the chosen completion, in nats.
        gap: difference of the scaled rewards, a pair's margin taken off.

    Returns:
        One loss per pair in (0, 2), not averaged; 1 where both are where the reference has them.
    """
    return chosen.sigmoid() + (-gap).sigmoid()


def nca_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """NCA on a pair (arXiv:2402.05369): a text of the data or of the reference, three times asked.

    Args:
        chosen: scaled reward of the chosen completion, in nats.
        rejected: of the rejected one.

    Returns:
        One loss per pair above 0, not averaged; 2 log 2 where both are where the reference has
        them. Its least value in ``chosen`` alone is at log 2: it does not push without end.
    """
    of_data, of_noise = -F.logsigmoid(chosen), F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return of_data - of_noise / 2
