"""What a run holds from step to step: weights, gradients, optimizer. Counted, not estimated.

Not here: what a micro-batch needs on top (``rehearsal``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from counterpoint.planner.sharding import entries_held
from counterpoint.tensor_parts import entries_of, tensor_bytes

KEPT = (
    *(("adafactor", 0.0), ("sgd", 0.0), ("lomo", 0.0), ("lion", 1.0), ("ademamix", 3.0)),
    *(("rmsprop", 1.0), ("adagrad", 1.0)),
)
"""Part of an optimizer's name -> numbers that it keeps for a weight; all others keep two."""

NARROW = (("8bit", 1.0), ("4bit", 0.5))
"""Part of an optimizer's name -> bytes of such a number; all others keep the weight's dtype."""

OF_BITSANDBYTES = ("_bnb", "_8bit", "_32bit", "ademamix")
"""Parts of the names of optimizers that keep a number in float32 where they do not in 8 bits."""

FEWEST, BLOCK = 4096, 256
"""Weights of a tensor from which its numbers are kept in few bits, and how many share a scale."""


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
        host: bytes that wait in the host's memory, where the update is made; of them none of the
            others counts any.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    buckets: int
    optimizer: int
    initial: int = 0
    host: int = 0

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
    shards: int = 1,
    offload: bool = False,
) -> Holdings:
    """Count what a rank of a run holds.

    Args:
        model: as it will be trained, adapters included; on any device, ``meta`` included.
        optim: the optimizer's name; one that is not known counts as AdamW.
        stochastic: ``stochastic_rounding`` is on, which brings an optimizer of its own.
        ranks: processes that share a step.
        drift: the drift from the initial policy is bounded.
        shards: ranks that share each weight, its gradient and its moments; buffers are whole.
        offload: what a rank holds of them waits on the host; buffers do not.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    gradients = sum(_bytes(weight, shards) for weight in trained)
    held = Holdings(
        parameters=sum(map(entries_of, weights)),
        trained=sum(weight.numel() for weight in trained),
        weights=sum(_bytes(weight, shards) for weight in weights)
        + sum(map(tensor_bytes, model.buffers())),
        gradients=gradients,
        buckets=gradients if ranks > 1 and shards == 1 else 0,
        # stochastic rounding keeps both moments in float32, whatever the weights are
        optimizer=round(
            8 * sum(entries_held(weight, shards) for weight in trained)
            if stochastic
            else sum(_kept(weight, optim, shards) for weight in trained)
        ),
        initial=gradients if drift else 0,
    )
    return _on_the_host(held, sum(map(tensor_bytes, model.buffers()))) if offload else held


def _on_the_host(held: Holdings, buffers: int) -> Holdings:
    return replace(
        held,
        weights=buffers,
        gradients=0,
        optimizer=0,
        initial=0,
        host=held.weights - buffers + held.gradients + held.optimizer + held.initial,
    )


def _bytes(tensor: torch.Tensor, shards: int = 1) -> int:
    """Of what a rank holds of it, whatever it is packed in."""
    part = entries_held(tensor, shards) / max(1, tensor.numel())
    return round(tensor_bytes(tensor) * part)


def _kept(weight: torch.Tensor, optim: str, shards: int) -> float:
    """Bytes that an optimizer keeps for a weight."""
    numbers = next((n for part, n in KEPT if part in optim), 2.0)
    of_torch = optim.startswith("adamw_torch")
    theirs = not of_torch and any(part in optim for part in OF_BITSANDBYTES)
    width = next((n for part, n in NARROW if part in optim), None)
    count = entries_held(weight, shards)
    if width is not None and count >= FEWEST and (theirs or count % BLOCK == 0):
        return numbers * (width * count + 4 * math.ceil(count / BLOCK))
    return numbers * count * (4.0 if theirs else float(weight.element_size()))
