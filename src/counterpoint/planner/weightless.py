"""A model's twin without data: the same modules over tensors that have shapes only.

Not here: running it (``rehearsal``).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from counterpoint.planner.compressed import stand_ins


def fake_mode() -> FakeTensorMode:
    """In which a twin is made and run; the ids of a batch may be real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """While open, torch logs nothing of what cannot run without data; the exception says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def weightless_twin(
    model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None
) -> nn.Module:
    """A copy of a model's modules whose weights have shapes and no data.

    Args:
        model: on any device, ``meta`` included; its weights are neither read nor copied.
        mode: what the copy belongs to; run it there alone.
        dtype: of its floating-point weights; None: as they are.

    Returns:
        The copy, as if it lay on a CPU; tied weights are tied, frozen ones frozen.
    """
    with mode:
        twin: nn.Module = _copied(model, "cpu", dtype)
    return twin


def adapted(model: nn.Module, adapter: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a model's modules on the ``meta`` device with an adapter on it.

    Args:
        model: on any device; it is neither read nor changed.
        adapter: a ``peft.PeftConfig``.
        dtype: of the model's floating-point weights, not the adapter's; None: as they are.
    """
    from peft import get_peft_model

    # peft writes what it finds into the configuration
    found: nn.Module = get_peft_model(_copied(model, "meta", dtype), copy.deepcopy(adapter))
    return found


def _copied(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> Any:
    known: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        known.setdefault(id(tensor), _empty(tensor, device, dtype))
    known.update(stand_ins(model, device, known))
    # a deep copy takes what it is told that it has copied already
    return copy.deepcopy(model, known)


def _empty(tensor: Tensor, device: str, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    kept = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
    made = torch.empty(tensor.shape, dtype=kept, device=device)
    return nn.Parameter(made, requires_grad=tensor.requires_grad)
