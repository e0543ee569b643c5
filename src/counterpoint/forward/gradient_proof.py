"""The gradient of a few pairs, small enough to be kept beside another one and compared with it.

A layout may be right in value and wrong in gradient: what a token should not see may weigh next
to nothing now, and still be what a weight learns from. So both are proved. A gradient is as large
as the weights that train; of each weight's at most ``SAMPLE`` entries are kept, evenly spread, and
the rest is let go at once.

Nothing stays behind: ``torch.autograd.grad`` leaves ``.grad`` and the hooks of DDP alone, and
``left_as_it_was`` puts back generators, buffers and modes.

Not here: what is compared, and what follows (``agreement``, ``head``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.tensor_parts import device_of_products

SAMPLE = 65_536
"""Entries of one weight's gradient that are kept."""

WIDE, NARROW = 1e-3, 0.2
"""Largest difference of a weight's gradient, relative to its norm, in 32 bits or more, and in 16.

Rounding of a product of n terms is about sqrt(n) * eps / 2, some 4e-6 of float32 for the 4,096
of a wide layer, and adds up over some dozens of layers: 1e-4 at most, measured 1e-6 to 1e-5 on the
test models. A token that wrongly sees another changes a gradient by percents. In 16 bits the same
rounding makes 0.3 to 0.1 of a layer's gradient, and only gross mistakes are seen there."""

FLOOR = 1e-2
"""Share of the norm of all gradients below which a weight's own is taken for rounding."""


def sampled_gradient(total: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Some entries of the gradient of each weight, in float32.

    Args:
        total: a scalar with a graph, or one that nothing of the weights is in.
        weights: that require a gradient.
    """
    if not total.requires_grad:
        return [weight.new_zeros(1) for weight in weights]
    return sampled(torch.autograd.grad(total, list(weights), allow_unused=True))


def sampled(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    """Some entries of each gradient, in float32; a zero where there is none.

    Args:
        gradients: of some weights.
    """
    found = list(gradients)
    # none: of an expert that no token was sent to, of a weight that is not used
    device = next((one.device for one in found if one is not None), None)
    return [torch.zeros(1, device=device) if one is None else _sample(one) for one in found]


def _sample(gradient: Tensor) -> Tensor:
    flat = gradient.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)].float().clone()


def relative_differences(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """How far each gradient is from its like, relative to its norm; NaN where one is not finite.

    Args:
        one: from ``sampled_gradient``; the truth.
        other: of the same weights.
    """
    norms = [float(true.norm()) for true in one]
    whole = math.hypot(*filter(math.isfinite, norms))
    floor = max(FLOOR * whole, torch.finfo(torch.float32).tiny)
    apart = [float((true - found).norm()) for true, found in zip(one, other, strict=True)]
    return [
        difference / max(norm, floor) if math.isfinite(difference) else math.nan
        for norm, difference in zip(norms, apart, strict=True)
    ]


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[int, float]:
    """Which gradient differs most from its like, and by how much, relative to its norm.

    Args:
        one: as for ``relative_differences``.
        other: likewise.

    Returns:
        NaN for the first in which something is not finite: of all of them nothing is known then.
    """
    found = relative_differences(one, other)
    unknown = next((place for place, one in enumerate(found) if math.isnan(one)), None)
    if unknown is not None:
        return unknown, math.nan
    place = max(range(len(found)), key=found.__getitem__, default=0)
    return place, found[place] if found else 0.0


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; modes, buffers and random generators are as before in the end.

    Args:
        model: unwrapped from distributed training.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = device_of_products(model)
    forked = [device] if device.type == "cuda" else []
    try:
        with in_evaluation_mode(model), torch.random.fork_rng(forked):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
