"""The policy that a run began with, in the memory of its trained weights alone.

While ``as_it_was`` is open, each module holds the weights of the start in place of those that
train, and is in evaluation mode. The weights that train are put aside, not written to: no storage
changes, so that a graph that waits for its backward, and autocast's cache of narrowed weights,
never see it.

Not here: what is compared (``token_kl``), and whether a resumed run has the same one
(``trainer``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from counterpoint.forward.modes import in_evaluation_mode


class InitialPolicy:
    """A model's trained weights as they are now, for when they will have moved.

    What is frozen is not kept: an adapter's start takes next to nothing, that of a model that
    trains whole takes its weights once more, on their device.

    Args:
        model: unwrapped from distributed training and ``torch.compile``; none of its weights may
            be unfrozen or replaced later.
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy what trains; a tied weight once."""
        self.model = model
        self._kept: dict[Tensor, nn.Parameter] = {
            weight: nn.Parameter(weight.detach().clone(), requires_grad=False)
            for weight in model.parameters()
            if weight.requires_grad
        }
        self._places = [
            (module._parameters, name, weight)
            for module in model.modules()
            for name, weight in module._parameters.items()
            if weight is not None and weight in self._kept
        ]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(kept.numel() * kept.element_size() for kept in self._kept.values())

    def was(self, weight: Tensor) -> Tensor:
        """What a weight of the model was at the start; one that is frozen is what it was."""
        return self._kept.get(weight, weight)

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """While open, the model computes as at the start, without dropout and without gradient."""
        aside = [place[name] for place, name, _ in self._places]
        try:
            for place, name, weight in self._places:
                place[name] = self._kept[weight]
            with torch.no_grad(), in_evaluation_mode(self.model):
                yield
        finally:
            for (place, name, _), put_aside in zip(self._places, aside, strict=True):
                place[name] = put_aside
