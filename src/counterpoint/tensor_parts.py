"""What a tensor of a kind of its own is made of: quantized weights are bytes and scales.

Such a kind (torchao's, for one) knows few operations: no norm, no view of its bytes, no address.
Whatever reads values or bytes of any weight reads them part by part.

Not here: what is read of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_SIGNS = ("__tensor_flatten__", "quant_state", "SCB")
"""What tensors of torchao, and of bitsandbytes in 4 and in 8 bits, have."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold parts of a tensor, so that it is a ``DTensor``.

    Args:
        tensor: of any shape, precision and kind.
    """
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its shard, which may be empty, or all of any other.

    Args:
        tensor: of any shape, precision and kind. One that leads to a gradient still does.
    """
    kind: Any = tensor
    part: Tensor = kind.to_local() if is_sharded(tensor) else tensor
    return part


def device_of_products(model: nn.Module) -> torch.device:
    """Where a model computes: where its weights are, unless its shards wait in the host's memory.

    Args:
        model: with at least one parameter.
    """
    first = next(model.parameters())
    mesh = getattr(first, "device_mesh", None)
    if mesh is None or mesh.device_type == first.device.type:
        return first.device
    return torch.device(mesh.device_type, torch.accelerator.current_device_index())


def on_its_mesh(tensor: Tensor) -> Tensor:
    """A tensor of which ranks hold parts, where they can exchange them: not in the host's memory.

    Args:
        tensor: of any kind; one that waits nowhere is itself.
    """
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None or mesh.device_type == tensor.device.type:
        return tensor
    return tensor.to(mesh.device_type)


def parts_of(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of; any other is one itself.

    Args:
        tensor: of any shape, precision and kind.
    """
    kind: Any = tensor
    if is_sharded(tensor):
        yield from parts_of(_as_codes(local_part(tensor), of=kind))
        yield from _beside(kind)
        return
    if hasattr(tensor, "__tensor_flatten__"):
        for name in kind.__tensor_flatten__()[0]:
            yield from parts_of(getattr(tensor, name))
        return
    yield _as_codes(tensor)
    yield from _beside(kind)


def _as_codes(tensor: Tensor, *, of: Any = None) -> Tensor:
    """Codes of 4 bits as bytes, also where they are stored in a floating-point type for FSDP.

    As numbers they mean nothing, and many are no number.
    """
    state = getattr(tensor if of is None else of, "quant_state", None)
    if state is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().contiguous().view(torch.uint8)


def _beside(kind: Any) -> Iterator[Tensor]:
    """What bitsandbytes keeps beside its codes: scales, and scales of scales."""
    scales = getattr(kind, "SCB", None)
    if scales is not None:
        yield scales
    state = getattr(kind, "quant_state", None)
    while state is not None:
        yield from (t for t in map(vars(state).get, _STATE) if isinstance(t, Tensor))
        state = getattr(state, "state2", None)


_STATE = ("absmax", "offset", "code")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of no kind of its own, so that every operation knows it.

    Args:
        tensor: of any shape, precision and kind.
    """
    return not any(getattr(tensor, name, None) is not None for name in _SIGNS)


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of the weight that a tensor stands for; that of codes of 4 bits is another.

    Args:
        tensor: of any shape, precision and kind.
    """
    shape = getattr(getattr(tensor, "quant_state", None), "shape", None)
    return tensor.shape if shape is None else torch.Size(shape)


def filed_as(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and precision of a tensor; of codes of 4 bits those of bytes, however they are stored.

    Args:
        tensor: of any shape, precision and kind.
    """
    if getattr(tensor, "quant_state", None) is None or not tensor.is_floating_point():
        return tuple(tensor.shape), tensor.dtype
    return (tensor.numel() * tensor.element_size(), 1), torch.uint8


def entries_of(tensor: Tensor) -> int:
    """How many weights a tensor holds.

    Args:
        tensor: of any shape, precision and kind.
    """
    return shape_of(tensor).numel()


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes, with its scales.

    Args:
        tensor: of any shape, precision and kind.
    """
    return sum(part.numel() * part.element_size() for part in parts_of(tensor))


def floating_parts(tensor: Tensor) -> Iterator[Tensor]:
    """What of a tensor can be not finite: of a quantized one its scales, say.

    Args:
        tensor: of any shape, precision and kind; on "meta" it has no values, and no such part.

    Yields:
        Detached tensors with entries, of 16 bits and more: nothing is computed in 8 bits, whose
        NaN and infinities bfloat16 holds.
    """
    for part in (part.detach() for part in parts_of(tensor)):
        if part.is_floating_point() and part.numel() and not part.is_meta:
            yield part if part.dtype.itemsize > 1 else part.to(torch.bfloat16)
