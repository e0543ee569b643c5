"""Load balancing of mixture-of-experts models, exact over a whole optimizer step.

The balancing loss of Switch Transformers (arXiv:2101.03961, eqs. 4 to 6) as transformers
computes it: experts x sum over experts of (share of tokens sent there) x (mean probability of
it), over all layers together. It is a product of two means, so a mean of micro-batch values
depends on the cut. Here both are sums over the step; the shares, which carry no gradient, must
be known before the first backward, and then every micro-batch contributes exactly its part.

Not here: which tokens count how often (``token_multiplicity`` reads the batch's layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.records import PairBatch, exact_dtype
from counterpoint.runlog import logger


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


def token_multiplicity(batch: PairBatch) -> Float[Tensor, "rows tokens"]:
    """How often each input token counts: 0 at padding and in fillers, 2 in a shared prompt."""
    weight = batch.attention_mask.to(exact_dtype(batch.input_ids.device))
    if batch.layout == "padded":
        return weight * batch.counted.repeat(2)[:, None]
    for pair, (row, start, prompt, chosen, rejected) in enumerate(batch.segments):
        weight[row, start : start + prompt] = 2
        end = start + prompt + chosen + rejected
        weight[row, start:end] *= batch.counted[pair]
    return weight


def router_sums(
    router_logits: tuple[Tensor, ...], top_k: int, multiplicity: Float[Tensor, "rows tokens"]
) -> RouterSums:
    """Sums over the layers of one forward pass.

    Args:
        router_logits: per layer ``[rows * tokens, experts]``; empty where all layers are dense.
        top_k: experts a token is sent to.
        multiplicity: how often each token counts.

    Returns:
        The sums; ``probability`` carries the gradient.
    """
    times = multiplicity.flatten()
    experts = router_logits[0].shape[-1] if router_logits else 0
    sent = times.new_zeros(experts)
    probability = times.new_zeros(experts)
    for layer in router_logits:
        probs = F.softmax(layer.reshape(-1, experts).float(), dim=-1)
        chosen = probs.detach().topk(top_k, dim=-1).indices
        sent = sent + times @ F.one_hot(chosen, experts).sum(1).to(times.dtype)
        probability = probability + times @ probs.to(times.dtype)
    return RouterSums(sent, probability, times.sum() * len(router_logits))


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


@cache
def warn_of_no_router(model_name: str) -> None:
    """Say, once for each kind of model, that there is nothing to balance by.

    Args:
        model_name: of its class.
    """
    logger().warning(
        "%s hands out no router logits: its experts, if it has any, are not balanced.", model_name
    )


def router_top_k(config: Any) -> int | None:
    """Experts a token is sent to, or None for a model that does not balance."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not hasattr(config, "output_router_logits"):
        return None
    top_k = getattr(config, "num_experts_per_tok", None)
    return int(top_k) if top_k else None
