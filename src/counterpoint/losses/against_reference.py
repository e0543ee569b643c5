"""Gaps that read a reference model in another way than DPO does.

DPO's own gap (arXiv:2305.18290) is the difference of two rewards, each the log-probability of a
completion minus that under the reference.

Not here: what a gap costs (``preference``), losses that judge each completion alone
(``anchored``), and where the reference's numbers come from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-5
"""Share of a log-probability up to which a loss against the reference is rounding of float32."""


def optimistic_gap(
    gap: Float[Tensor, " pairs"],
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    *,
    beta: float,
) -> Float[Tensor, " pairs"]:
    """HyPO's gap (arXiv:2602.11902): a reference that prefers the rejected is taken as neutral.

    Args:
        gap: of DPO, in nats of scaled reward, margins taken off.
        chosen: log-probability of the chosen completion under the reference, in nats.
        rejected: of the rejected one.
        beta: scale of the reward, above 0.

    Returns:
        beta (log p(chosen) - log p(rejected) - max(0, the reference's difference)), with the same
        margins taken off.
    """
    return gap - beta * F.relu(rejected - chosen)


def positive_gap(
    gap: Float[Tensor, " pairs"],
    chosen: Float[Tensor, " pairs"],
    reference: Float[Tensor, " pairs"],
    *,
    beta: float,
    strength: float,
) -> Float[Tensor, " pairs"]:
    """DPO-Positive's gap (arXiv:2402.13228): less by what the chosen has lost to the reference.

    Args:
        gap: of DPO, in nats of scaled reward, margins taken off.
        chosen: log-probability of the chosen completion minus that under the reference, in nats.
        reference: its log-probability under the reference, in nats.
        beta: scale of the reward, above 0.
        strength: lambda in the paper, at least 0; 50 there.

    Returns:
        The gap minus beta x strength x max(0, -chosen).
    """
    # a run begins on the kink, where rounding alone would choose which pairs weigh 51 times as much
    lost = torch.where(-chosen > ROUNDING * reference.abs(), -chosen, torch.zeros_like(chosen))
    return gap - beta * strength * lost
