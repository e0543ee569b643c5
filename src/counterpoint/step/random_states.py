"""The states of torch's random generators that a pass through a model draws from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_states(device: torch.device | str) -> dict[str, Tensor]:
    """The states by kind of device: the CPU's, and the device's own on CUDA."""
    states = {"cpu": torch.get_rng_state()}
    kind = torch.device(device).type
    if kind == "cuda":
        states[kind] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Set them again; one of a device that is not here is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def generators_kept(device: torch.device | str) -> Iterator[None]:
    """Whatever is drawn within is drawn again after it."""
    before = generator_states(device)
    try:
        yield
    finally:
        restore_generators(before)
