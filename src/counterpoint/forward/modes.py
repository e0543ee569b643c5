"""Evaluation mode for a while; every module is in its own mode again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """While open, nothing of a model drops out or counts statistics.

    A module that was frozen in evaluation mode within a model that trains stays so: modes are
    put back one by one, where ``model.train()`` would set them all.

    Args:
        model: wrapped or not.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
