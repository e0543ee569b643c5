"""What losses read of single tokens, beyond their sum: WPO's weight and LD-DPO's length.

Not here: how tokens were summed (``forward.pair_forward``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.records import PairLogps


def policy_weight(logps: PairLogps) -> Float[Tensor, " pairs"]:
    """WPO's weight of a pair (arXiv:2406.11827): how like the policy's own samples it is.

    min(1, exp(u(chosen) + u(rejected))), with u(y) the mean over the tokens of y of
    log p(token) - log sum p^2, the sum over the vocabulary. A completion whose tokens are as likely
    as what the policy draws itself has u = 0.

    Args:
        logps: of pairs whose ``likeness`` was asked for.

    Returns:
        One number per pair in [0, 1], without a gradient.

    Raises:
        ValueError: for pairs whose likeness was not asked for.
    """
    if logps.facts.likeness is None:
        raise ValueError("use_weighting reads PairFacts.likeness, which these pairs do not have")
    return torch.exp(logps.facts.likeness.clamp(max=0)).detach()


def length_weighted(
    logps: PairLogps, *, alpha: float
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Sums in which tokens past the shorter completion count by alpha (LD-DPO, arXiv:2409.06411).

    Args:
        logps: of pairs whose shared sums were asked for.
        alpha: in [0, 1]; 1 gives the sums themselves.

    Returns:
        Of the chosen and of the rejected completion, in nats.

    Raises:
        ValueError: for pairs whose shared sums were not asked for.
    """
    chosen, rejected = logps.facts.chosen_shared, logps.facts.rejected_shared
    if chosen is None or rejected is None:
        raise ValueError("ld_alpha reads shared sums of PairFacts, which these pairs do not have")
    return (
        chosen + alpha * (logps.chosen - chosen),
        rejected + alpha * (logps.rejected - rejected),
    )
