"""The policy that a run began with, in the memory of its trained weights alone.

While ``as_it_was`` is open, each module holds the weights of the start in place of those that
train, and is in evaluation mode. The weights that train are put aside, not written to: no storage
changes, so that a graph that waits for its backward, and autocast's cache of narrowed weights,
never see it.

Of weights that are sharded over ranks each rank keeps its own part. It is put into the weight's
storage, since the engine that shards gathers from there; the weights that train wait in a copy.

Not here: what is compared (``token_kl``), and whether a resumed run has the same one
(``trainer``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.tensor_parts import is_sharded, local_part


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
        _at_rest(model)
        self._kept: dict[Tensor, nn.Parameter] = {
            weight: nn.Parameter(weight.detach().clone(), requires_grad=False)
            for weight in model.parameters()
            if weight.requires_grad
        }
        self._places = [
            (module, name, weight)
            for module in model.modules()
            for name, weight in module._parameters.items()
            if weight is not None and weight in self._kept
        ]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(
            local_part(kept.detach()).numel() * kept.element_size() for kept in self._kept.values()
        )

    def was(self, module: nn.Module, name: str) -> Tensor:
        """What a weight was at the start; of a sharded one, this rank's part.

        Args:
            module: of the model.
            name: of the weight in the module. One that is frozen is what it was.
        """
        now: Tensor = getattr(module, name)
        at = (weight for owner, called, weight in self._places if (owner, called) == (module, name))
        weight = next(at, None)
        return now if weight is None else self._kept[weight]

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """While open, the model computes as at the start, without dropout and without gradient."""
        self._follow()
        parts = [
            (local_part(weight.detach()), local_part(kept.detach()))
            for weight, kept in self._kept.items()
            if is_sharded(weight)
        ]
        whole = [place for place in self._places if not is_sharded(place[2])]
        aside = [module._parameters[name] for module, name, _ in whole]
        moved = [part.clone() for part, _ in parts]
        try:
            _fill(self.model, parts)
            for module, name, weight in whole:
                module._parameters[name] = self._kept[weight]
            with torch.no_grad(), in_evaluation_mode(self.model):
                yield
        finally:
            for (module, name, _), put_aside in zip(whole, aside, strict=True):
                module._parameters[name] = put_aside
            own = (part for part, _ in parts)
            _fill(self.model, list(zip(own, moved, strict=True)))

    def _follow(self) -> None:
        """Know weights that have taken the place of those that were kept; of shards keep parts."""
        _at_rest(self.model)
        kept: dict[Tensor, nn.Parameter] = {}
        for place, (module, name, then) in enumerate(self._places):
            now = module._parameters[name]
            now = then if now is None else now
            if now not in kept:
                known = self._kept[then]
                if is_sharded(now) and not is_sharded(then):
                    known = nn.Parameter(_part(known, now), requires_grad=False)
                kept[now] = known
            self._places[place] = module, name, now
        self._kept = kept


def _fill(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> None:
    """Write into each rank's own parts, which nothing must have gathered from before."""
    if parts:
        _at_rest(model)
        # what is gathered anew is the same tensor to autocast, which would take the copy it has
        torch.clear_autocast_cache()
    with torch.no_grad():
        for part, values in parts:
            part.copy_(values)


def _at_rest(model: nn.Module) -> None:
    """Let an engine that shards give back what it has gathered: parameters are parts then."""
    for module in model.modules():
        give_back = getattr(module, "reshard", None)
        if give_back is not None:
            give_back()


def _part(kept: Any, weight: Any) -> Tensor:
    """A whole weight as another one of its kind is sharded, from the part of it that is here."""
    own = kept.detach()
    for dim, placement in enumerate(weight.placements):
        if placement.is_shard():
            size, rank = weight.device_mesh.size(dim), weight.device_mesh.get_local_rank(dim)
            parts = own.chunk(size, placement.dim)
            own = parts[rank] if rank < len(parts) else own.narrow(placement.dim, 0, 0)
    like: Tensor = weight.detach().clone()
    local_part(like).copy_(own)
    return like
