"""Load balancing of mixture-of-experts models, exact over a whole optimizer step.

The balancing loss of Switch Transformers (arXiv:2101.03961, eqs. 4 to 6) as transformers
computes it: experts x sum over experts of (share of tokens sent there) x (mean probability of
it), over all layers together. It is a product of two means, so a mean of micro-batch values
depends on the cut. Here both are sums over the step; the shares, which carry no gradient, must
be known before the first backward, and then every micro-batch contributes exactly its part.

The shares count the experts that the routers chose (``routing``). The mean probability is a
softmax of their logits, as transformers takes it, also where a router weighs by sigmoid.

Not here: what a router chose (``routing``), how often a token counts (``layouts``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import ModelError
from counterpoint.forward.routing import Choice


@dataclass(frozen=True, slots=True)
class RouterSums:
    """Sums over tokens and layers.

    Args:
        sent: how many tokens chose each expert, detached.
        probability: summed router probability of each expert.
        tokens: how many there were, over all layers.
    """

    sent: Float[Tensor, " experts"]
    probability: Float[Tensor, " experts"]
    tokens: Float[Tensor, ""]


def router_sums(choices: list[Choice], multiplicity: Float[Tensor, "rows tokens"]) -> RouterSums:
    """Sums over the routers of one forward pass.

    Args:
        choices: one for each router; none where all layers are dense.
        multiplicity: how often each token counts.

    Returns:
        The sums; ``probability`` carries the gradient.

    Raises:
        ModelError: CP313 where two routers choose among different numbers of experts.
    """
    rows, tokens = multiplicity.shape
    times = multiplicity.flatten()
    numbers = {choice.scores.shape[-1] for choice in choices}
    if len(numbers) > 1:
        raise ModelError(
            "CP313",
            f"its layers have {' and '.join(map(str, sorted(numbers)))} experts, which have no "
            "balance in common; router_aux_loss_coef=0 trains without a balancing loss.",
        )
    experts = next(iter(numbers), 0)
    sent = times.new_zeros(experts)
    probability = times.new_zeros(experts)

    def own(values: Tensor) -> Tensor:
        """Of real tokens, without the virtual ones that prompt tuning puts before each row."""
        return values.reshape(rows, -1, experts)[:, -tokens:].flatten(0, 1).to(times.dtype)

    for choice in choices:
        sent = sent + times @ own(F.one_hot(choice.chosen, experts).sum(1))
        probability = probability + times @ own(choice.probabilities())
    return RouterSums(sent, probability, times.sum() * len(choices))


def add_sums(parts: list[RouterSums]) -> RouterSums:
    """The sums of several forward passes together."""
    return RouterSums(
        sent=torch.stack([part.sent for part in parts]).sum(0),
        probability=torch.stack([part.probability for part in parts]).sum(0),
        tokens=torch.stack([part.tokens for part in parts]).sum(),
    )


def balancing_loss(part: RouterSums, step: RouterSums) -> Float[Tensor, ""]:
    """The share of the step's balancing loss that one micro-batch carries.

    Args:
        part: sums of the micro-batch, with gradient.
        step: sums of the whole step, of which ``sent`` and ``tokens`` are used.

    Returns:
        A scalar; shares add up to the step's loss, which is at least about ``top_k``.
    """
    tokens = step.tokens.clamp(min=1)
    return part.probability.shape[0] * (step.sent / tokens * part.probability / tokens).sum()
