"""Which weights a small update cannot move, since it rounds away in their precision.

A bfloat16 weight has 8 bits of precision; a step below half a unit in its last place leaves it
where it is, however often it is made.

Not here: what is said about it (``doctor``, ``models.precision``, ``monitor``).
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, bfloat16
from torch.optim import Optimizer

CHUNK = 2**22
"""Weights looked at in one go: bounds the memory of the count."""


def held(weights: Float[Tensor, "*shape"], step: float) -> Bool[Tensor, "*shape"]:
    """Which weights stay where they are, whether a step adds to them or takes away.

    Args:
        weights: of any floating dtype up to float32.
        step: size of the update, at least 0; AdamW's first is the learning rate, later ones are at
            most a few times as large, and mostly smaller.

    Returns:
        True where both sums, taken in float32 as optimizers do, round back to the weight.
    """
    wide = weights.float()
    up, down = (wide + step).to(weights.dtype), (wide - step).to(weights.dtype)
    return (up == weights) & (down == weights)


def held_share(weights: Iterable[Tensor], step: float) -> float:
    """The share of weights that ``held`` holds, in [0, 1]; 0 where there are none.

    Args:
        weights: floating tensors of any shapes and devices.
        step: size of the update, at least 0.
    """
    stuck = total = 0
    for weight in weights:
        total += weight.numel()
        for part in weight.detach().flatten().split(CHUNK):  # type: ignore[no-untyped-call]
            stuck += int(held(part, step).sum())
    return stuck / total if total else 0.0


def rounds_to_nearest(optimizer: Optimizer) -> dict[Tensor, bool]:
    """Of each weight that an optimizer holds, whether it loses updates that are too small.

    Args:
        optimizer: of any kind, wrapped by accelerate or not.

    Returns:
        False for weights that are rounded at random, or whose rounding errors are kept.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    stochastic = bool(getattr(inner, "bf16_stochastic_round", False))
    found: dict[Tensor, bool] = {}
    for group in optimizer.param_groups:
        # AnyPrecisionAdamW's name for it, and optimi's, whose None means wherever it is needed
        kept = group.get("use_kahan_summation") or group.get("kahan_sum", False) is not False
        for weight in group["params"]:
            found[weight] = not (kept or (stochastic and weight.dtype is bfloat16))
    return found
