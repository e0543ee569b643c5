"""What a rank holds of a model in shards, and what is whole for a moment: FSDP2's way with memory.

Every weight is split over ranks along its first dimension, and so are its gradient and moments. A
layer's weights are gathered when it runs, forward and backward, and the next layer's while it
does; its gradients are whole until they have been added up and split. Final norm and head are
gathered once, from the end of the forward to the beginning of the backward; where the embedding is
the head's weight, from the beginning to the end.

Not here: what a micro-batch needs (``rehearsal``), how long an exchange takes (``scaling``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.models.checkpointing import layers_of
from counterpoint.planner.rehearsal import Rehearsal

REDUCED = 4
"""Bytes of a number of a gradient while ranks add it up."""


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that are gathered together, in bytes, whole.

    Args:
        weights: as they are gathered.
        gradients: of those that train, as the backward makes them.
        reduced: the same as ranks add them up.
    """

    weights: int = 0
    gradients: int = 0
    reduced: int = 0

    def __add__(self, other: Group) -> Group:
        """Both at once."""
        return Group(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.reduced + other.reduced,
        )


@dataclass(frozen=True, slots=True)
class Groups:
    """How a model is gathered.

    Args:
        layers: each of them.
        front: the embedding, where it is not the head's weight.
        tail: what is gathered once: final norm and head, and whatever else is outside of layers.
        tied: whether the embedding is the head's weight.
    """

    layers: tuple[Group, ...]
    front: Group
    tail: Group
    tied: bool

    @property
    def outside(self) -> Group:
        """All that is not of a layer."""
        return self.front + self.tail

    @property
    def all(self) -> Group:
        """The whole model."""
        return sum(self.layers, self.outside)

    @property
    def largest(self) -> Group:
        """The layer of most weights."""
        return max(self.layers, key=lambda group: group.weights, default=Group())


def groups_of(model: nn.Module, gathered: torch.dtype | None = None) -> Groups:
    """How a model is gathered, layer by layer.

    Args:
        model: on any device, ``meta`` included.
        gathered: dtype that floating-point weights are gathered in; None: their own.
    """
    inner: Any = model
    taken: set[int] = set()
    # a weight belongs to the group that has it first
    layers = tuple(_group(layer.parameters(), gathered, taken) for layer in layers_of(model))
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    front, head = (None if end is None else getattr(end, "weight", None) for end in ends)
    tied = front is not None and front is head
    first = Group() if tied or front is None else _group([front], gathered, taken)
    return Groups(layers, first, _group(model.parameters(), gathered, taken), tied)


def entries_held(weight: Tensor, shards: int) -> int:
    """Numbers of a weight that its first rank holds, where so many ranks share it."""
    if shards == 1 or not weight.numel():
        return weight.numel()
    rows = weight.shape[0] if weight.dim() else 1
    return -(-rows // shards) * (weight.numel() // rows)


def in_shards(rehearsal: Rehearsal, groups: Groups, gradients: int) -> Rehearsal:
    """A rehearsal with whole weights, as it is where each rank holds a part of them.

    Args:
        rehearsal: of a micro-batch that adds to gradients which are there already.
        groups: how the model is gathered.
        gradients: bytes of a rank's own part of them.
    """
    held = [*_gathered(groups, len(rehearsal.stages))]
    stages = tuple(
        replace(parts, gradients=gradients, gathered=there)
        for parts, there in zip(rehearsal.stages, held, strict=True)
    )
    return replace(rehearsal, stages=stages)


def _gathered(groups: Groups, count: int) -> Iterator[int]:
    """Bytes that are whole in each stage of a rehearsal; a gradient being made is counted there.

    Forward, head, and the parts of the backward, of which the first still has the tail.
    """
    layer, tail, front = groups.largest, groups.tail, groups.front
    kept = tail.weights if groups.tied else 0
    # a gather goes into one buffer, and from there into the weights
    yield kept + 2 * layer.weights
    yield tail.weights
    # the layer and the next one; its gradients, and the buffer that they are added up in
    running = 2 * layer.weights + layer.gradients + layer.reduced
    if groups.tied:
        kept += tail.gradients
        yield from [kept + running] * (count - 3)
        yield kept + max(running, tail.reduced)
        return
    yield tail.weights + tail.gradients + tail.reduced + 2 * layer.weights
    yield from [running] * (count - 4)
    yield max(running, front.reduced)


def _group(weights: Iterable[Tensor], gathered: torch.dtype | None, taken: set[int]) -> Group:
    found = Group()
    for weight in weights:
        if id(weight) in taken:
            continue
        taken.add(id(weight))
        own = weight.element_size()
        size = gathered.itemsize if gathered and weight.is_floating_point() else own
        whole = weight.numel() * size
        reduced = weight.numel() * max(size, REDUCED)
        trains = weight.requires_grad
        found += Group(whole, whole if trains else 0, reduced if trains else 0)
    return found
