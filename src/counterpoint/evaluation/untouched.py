"""A model writes, and is as before: its mode, its configuration, and the random state.

Not here: the writing (``generation``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.tensor_parts import device_of_products

KEPT = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "cache_implementation"})
"""What of a model's own generation config counts while we let it write."""


@contextmanager
def own_decoding_aside(model: Any) -> Iterator[None]:
    """Within it a model's files say nothing of decoding: what ours leaves open is not filled in.

    A forced first token (mBART, BART), suppressed tokens and shortest lengths are meant, for which
    a configuration has no value that switches them off.
    """
    config = getattr(model, "generation_config", None)
    before = {} if config is None else dict(vars(config))
    try:
        for name in before:
            if name not in KEPT and not name.startswith("_"):
                setattr(config, name, None)
        yield
    finally:
        if config is not None:
            vars(config).update(before)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Without gradient and dropout; modes and random state are as before in the end."""
    device = device_of_products(model)
    forked = [device] if device.type not in ("cpu", "mps") else []
    of_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        kind = device.type if forked else "cuda"  # with nothing to fork it is not looked at
        generators = torch.random.fork_rng(forked, device_type=kind)
        aside = own_decoding_aside(model)
        with in_evaluation_mode(model), torch.no_grad(), generators, aside:
            yield
    finally:
        if of_mps is not None:
            torch.mps.set_rng_state(of_mps)
