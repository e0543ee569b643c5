"""What a run holds from step to step: weights, gradients, optimizer. Counted, not estimated.

Not here: what a micro-batch needs on top (``rehearsal``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

KEPT = (("adafactor", 0.0), ("sgd", 0.0), ("lomo", 0.0), ("lion", 1.0), ("ademamix", 3.0))
"""Part of an optimizer's name -> numbers that it keeps for a weight; all others keep two."""

NARROW = (("8bit", 1.0), ("4bit", 0.5))
"""Part of an optimizer's name -> bytes of such a number; all others keep the weight's dtype."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Bytes that are there whatever a micro-batch holds.

    Args:
        parameters: weights of the model, a tied one once; a number and not bytes.
        trained: those of them that train.
        weights: bytes of the weights and of the model's buffers.
        gradients: bytes of the gradients of the weights that train.
        buckets: bytes of what ranks exchange gradients through; 0 for one rank.
        optimizer: bytes that the optimizer keeps.
        initial: bytes of the trained weights as they were, which a bound on the drift needs.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    buckets: int
    optimizer: int
    initial: int = 0

    @property
    def lasting(self) -> int:
        """Bytes that are there between two steps too."""
        return self.weights + self.buckets + self.optimizer + self.initial

    @property
    def least(self) -> int:
        """Bytes when the optimizer works, whatever a micro-batch holds."""
        return self.lasting + self.gradients


def holdings_of(
    model: nn.Module,
    *,
    optim: str = "adamw_torch",
    stochastic: bool = False,
    ranks: int = 1,
    drift: bool = False,
) -> Holdings:
    """Count what a run of a model holds.

    Args:
        model: as it will be trained, adapters included; on any device, ``meta`` included.
        optim: the optimizer's name; one that is not known counts as AdamW.
        stochastic: ``stochastic_rounding`` is on, which brings an optimizer of its own.
        ranks: processes that share a step.
        drift: the drift from the initial policy is bounded.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    gradients = sum(_bytes(weight) for weight in trained)
    return Holdings(
        parameters=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in trained),
        weights=sum(_bytes(tensor) for tensor in [*weights, *model.buffers()]),
        gradients=gradients,
        buckets=gradients if ranks > 1 else 0,
        # stochastic rounding keeps both moments in float32, whatever the weights are
        optimizer=round(
            8 * sum(weight.numel() for weight in trained)
            if stochastic
            else sum(_kept(weight, optim) for weight in trained)
        ),
        initial=gradients if drift else 0,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept(weight: torch.Tensor, optim: str) -> float:
    """Bytes that an optimizer keeps for a weight."""
    numbers = next((n for part, n in KEPT if part in optim), 2.0)
    width = next((n for part, n in NARROW if part in optim), float(weight.element_size()))
    return numbers * width * weight.numel()
