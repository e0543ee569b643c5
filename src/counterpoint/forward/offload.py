"""Activations that wait for their backward in the host's memory.

What autograd keeps of the forward is copied to the host and comes back when the backward asks for
it: bit for bit the same numbers, paid with two trips over the bus. With activation checkpointing,
what is kept is little more than each layer's input, and so little has to travel.

Both trips are on the stream that computes, so that no copy can be late or early.

Not here: weights and optimizer states on the host, which is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAST = 2**16
"""Bytes of the smallest tensor that travels: for less, the trip costs more than the place."""

HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Away:
    """A tensor that is on the host, and where it is asked for."""

    there: Tensor
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Here:
    """A tensor that has stayed, and how often it had been changed in place by then."""

    tensor: Tensor
    version: int


Packed = _Here | _Away


@contextmanager
def activations_on_host(
    *,
    least: int = LEAST,
    to_host: Callable[[Tensor], Tensor] | None = None,
    back: Callable[[Tensor, torch.device], Tensor] | None = None,
) -> Iterator[None]:
    """While open, what autograd keeps for a backward waits on the host; for a forward alone.

    Weights stay where they are, and so does what is small. On a CPU, where all of it is on the
    host already, this copies and saves nothing; whoever asks for it there is testing.

    Args:
        least: bytes of the smallest tensor that travels.
        to_host: copies a tensor there; None: ``copied``.
        back: copies one to a device; None: ``copied``.
    """
    going, coming = to_host or _to_host, back or copied

    def pack(tensor: Tensor) -> Packed:
        if _is_weight(tensor) or tensor.numel() * tensor.element_size() < least:
            return _Here(tensor, tensor._version)
        return _Away(going(tensor), tensor.device)

    def unpack(kept: Packed) -> Tensor:
        if isinstance(kept, _Away):
            return coming(kept.there, kept.device)
        if kept.tensor._version != kept.version:  # which autograd asks only without such hooks
            msg = "a tensor that the backward needs has been modified by an inplace operation"
            raise RuntimeError(msg)
        return kept.tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def offloading(device: torch.device, *, wanted: bool) -> AbstractContextManager[None]:
    """The same where it is wanted and saves something.

    Args:
        device: where the model is.
        wanted: the option ``activation_offload``.
    """
    return activations_on_host() if wanted and device.type != "cpu" else nullcontext()


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device with the same strides, since products round by how their factors lie.

    Args:
        tensor: perhaps a view, with gaps or with one entry in several places.
        device: of the copy; the same one is allowed.

    Returns:
        The copy; page-locked where it comes from CUDA to the host.
    """
    if not tensor.numel():
        return tensor.to(device)
    sizes, strides = tensor.shape, tensor.stride()
    # the stretch of memory that the tensor lies in
    span = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    bus = {tensor.device.type, device.type} == {"cpu", "cuda"}
    with torch.no_grad():
        stretch = tensor.detach().as_strided((span,), (1,), tensor.storage_offset())
        pins = bus and device.type == "cpu"
        place = torch.empty(span, dtype=tensor.dtype, device=device, pin_memory=pins)
        place.copy_(stretch, non_blocking=bus)
        return place.as_strided(sizes, strides)


def _to_host(tensor: Tensor) -> Tensor:
    return copied(tensor, HOST)


def _is_weight(tensor: Tensor) -> bool:
    """Whether it is a parameter, or a view of one as matrix products keep it.

    So are the whole parameters that FSDP2 puts together for a layer, which do not outlast it.
    """
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
