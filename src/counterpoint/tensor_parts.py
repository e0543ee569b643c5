"""What a tensor of a kind of its own is made of: quantized weights are bytes and scales.

Such a kind (torchao's, for one) knows few operations: no norm, no view of its bytes, no address.
Whatever reads values or bytes of any weight reads them part by part.

Not here: what is read of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of; any other is one itself.

    Args:
        tensor: of any shape, precision and kind.
    """
    if is_plain(tensor):
        yield tensor
        return
    kind: Any = tensor
    for name in kind.__tensor_flatten__()[0]:
        yield from parts_of(getattr(tensor, name))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of no kind of its own, so that every operation knows it.

    Args:
        tensor: of any shape, precision and kind.
    """
    return not hasattr(tensor, "__tensor_flatten__")


def floating_parts(tensor: Tensor) -> Iterator[Tensor]:
    """What of a tensor can be not finite: of a quantized one its scales, say.

    Args:
        tensor: of any shape, precision and kind; on "meta" it has no values, and no such part.

    Yields:
        Detached tensors with entries, of 16 bits and more: nothing is computed in 8 bits, whose
        NaN and infinities bfloat16 holds.
    """
    for part in parts_of(tensor.detach()):
        if part.is_floating_point() and part.numel() and not part.is_meta:
            yield part if part.dtype.itemsize > 1 else part.to(torch.bfloat16)
