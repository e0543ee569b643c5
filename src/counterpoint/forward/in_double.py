"""A model in float64 for a moment, and then with the very tensors that it had.

Not here: what is asked of it meanwhile (``agreement``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

LITTLE = 2**28
"""Bytes that may be taken of any run: a model of 32 million weights."""

OF_TRAINING = 12
"""Bytes that training takes for a float32 weight beside it: its gradient and two of AdamW's."""


def fits_in_double(model: nn.Module) -> bool:
    """Whether all weights are float32, and doubling them takes no more than training will.

    Args:
        model: unwrapped, before there are gradients or an optimizer.
    """
    weights = list(model.parameters())
    double = 8 * sum(weight.numel() for weight in weights)
    training = OF_TRAINING * sum(weight.numel() for weight in weights if weight.requires_grad)
    return (
        all(weight.dtype == torch.float32 for weight in weights)
        and all(weight.device.type in ("cpu", "cuda") for weight in weights)
        and double <= max(training, LITTLE)
    )


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """While open, weights and buffers of 32 bits are of 64; afterwards they are what they were.

    Args:
        model: for which ``fits_in_double`` is true.
    """
    held = [
        (tensor, tensor.data)
        for tensor in chain(model.parameters(), model.buffers())
        if tensor.dtype == torch.float32
    ]
    try:
        for tensor, data in held:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in held:
            tensor.data = data
