"""The state of every generator of random numbers that a run may draw from.

Not here: data order and stochastic rounding, which draw from generators of their own, seeded by
the run's seed and their place in it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Any]:
    """The generators of python, numpy, torch and one device, as a tree of ``tree``.

    Args:
        device: that this process computes on.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "words": _as_bytes(words), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "words": _as_bytes(keys),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def new_random_state(seed: int, device: torch.device) -> dict[str, Any]:
    """The state of generators that begin with a seed, as ``random_state`` has it.

    Args:
        seed: below 2 ** 32.
        device: that this process computes on.
    """
    before = random_state(device)
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return random_state(device)
    finally:
        set_random_state(before)


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator where it was; one of a device that is not here is left out.

    Args:
        state: from ``random_state``.
    """
    python, numbers = state["python"], state["numpy"]
    words = _as_words(python["words"]).tolist()
    random.setstate((python["version"], tuple(words), python["gauss"]))
    np.random.set_state(
        (
            numbers["kind"],
            _as_words(numbers["words"]),
            numbers["position"],
            numbers["has_gauss"],
            numbers["gauss"],
        )
    )
    torch.set_rng_state(state["torch"])
    for kind in state.keys() - {"python", "numpy", "torch"}:
        if torch.accelerator.is_available():
            torch.get_device_module(kind).set_rng_state(state[kind])


def _as_bytes(words: Any) -> Tensor:
    """Words of 32 bits as a uint8 tensor."""
    return torch.from_numpy(np.array(words, dtype="<u4").view(np.uint8).copy())


def _as_words(content: Tensor) -> Any:
    return content.numpy().view("<u4").astype(np.uint32)
