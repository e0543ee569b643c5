"""What one look at the parameters finds: numbers a tensor, and the same added up a group.

    moved        share of weights whose value is not what it was at the start
    moved_last   share whose value is not what it was at the last look
    update       norm of the change since the last look over the norm of the weights
    stuck        share of the weights with a gradient that this step left exactly where they were,
                 of those whose optimizer rounds to nearest: the update was below half a unit in
                 their last place, and is lost
    grad_norm    norm of the gradient as the optimizer gets it, after clipping

All but the gradient norms are of a sample (``sample``) and estimate those of the whole.

Not here: taking a look (``watch``), what is wrong with it (``judge``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.monitor.groups import GROUPS, group_of


def add_look(
    start: Float[Tensor, "tensors entries"],
    last: Float[Tensor, "tensors entries"],
    before: Float[Tensor, "tensors entries"],
    after: Float[Tensor, "tensors entries"],
    gradients: Float[Tensor, "tensors entries"],
) -> Float[Tensor, "tensors columns"]:
    """Add up what a step and the steps before it have done to a sample of weights.

    Args:
        start: the weights at the run's start.
        last: at the last look.
        before: before this step.
        after: after this step.
        gradients: of this step.

    Returns:
        A row for each tensor: entries moved since the start, entries moved since
        the last look, sum of squares of the change since the last look, sum of squares of the
        weights, entries with a gradient, and of these the ones that
        this step left as they were.
    """
    wanting = gradients != 0
    columns = (
        after != start,
        after != last,
        (after.double() - last.double()).square(),
        after.double().square(),
        wanting,
        wanting & (after == before),
    )
    return torch.stack([column.sum(1, dtype=torch.float64) for column in columns], 1)


@dataclass(frozen=True, slots=True)
class TensorLook:
    """One trainable tensor.

    Args:
        weights: its entries.
        dtype: as torch calls it, for example "bfloat16".
        moved: share moved since the start, in [0, 1].
        moved_last: share moved since the last look, in [0, 1].
        change: norm of the change since the last look, >= 0.
        size: norm of the weights, >= 0.
        wanting: share of weights with a gradient in this step, in [0, 1].
        stuck: of these, the share left where they were, in [0, 1].
        grad_norm: norm of its gradient, >= 0; None where it has none.
    """

    weights: int
    dtype: str
    moved: float
    moved_last: float
    change: float
    size: float
    wanting: float
    stuck: float
    grad_norm: float | None

    @classmethod
    def of(
        cls, tensor: Tensor, row: list[float], *, taken: int, norm: float, loses: bool
    ) -> TensorLook:
        """From what ``add_look`` found.

        Args:
            tensor: itself; only its shape and dtype are asked for.
            row: of the tensor.
            taken: how many of its entries were looked at.
            norm: of its gradient; 0 or NaN where it has none.
            loses: whether small updates round away; others are made up for later, and at a
                learning rate of 0 there are none.
        """
        moved, moved_last, change, size, wanting, left = row
        scale = tensor.numel() / taken
        return cls(
            weights=tensor.numel(),
            dtype=str(tensor.dtype).removeprefix("torch."),
            moved=moved / taken,
            moved_last=moved_last / taken,
            change=math.sqrt(change * scale),
            size=math.sqrt(size * scale),
            wanting=wanting / taken,
            stuck=left / wanting if wanting and loses else 0.0,
            grad_norm=norm if norm > 0 else None,
        )


@dataclass(frozen=True, slots=True)
class Look:
    """The parameters after a step, and what is known of the steps up to it.

    Args:
        step: the optimizer step, from 1.
        since: the step after which the weights were those of the start; 0 unless resumed anew.
        last: the step of the last look.
        applied: steps since ``since`` that the optimizer was not kept from.
        full: of these, those at half the schedule's full learning rate or more.
        learning_rate: largest of this step.
        at_full_rate: whether this step counts among ``full``.
        final: whether no further step comes.
        tensors: those that train, by name.
        silent: of these, those that never had a gradient other than 0.
        unoptimized: of these, those that the optimizer does not hold.
        frozen: weights that are not to train, by group.
        changed: frozen tensors whose bytes are not those of the start.
        unchanged_at: the last step at which there were none of these.
    """

    step: int
    since: int
    last: int
    applied: int
    full: int
    learning_rate: float
    at_full_rate: bool
    final: bool
    tensors: Mapping[str, TensorLook]
    silent: tuple[str, ...]
    unoptimized: tuple[str, ...]
    frozen: Mapping[str, int]
    changed: tuple[str, ...]
    unchanged_at: int

    def as_dict(self) -> dict[str, Any]:
        """The look as a line of ``movement.jsonl``."""
        return {
            "step": self.step,
            "since": self.since,
            "last": self.last,
            "learning_rate": self.learning_rate,
            "groups": {group: self._of_group(group) for group in self._groups()},
            "tensors": {name: _of_tensor(name, one) for name, one in self.tensors.items()},
            "without_gradient": list(self.silent),
            "changed": list(self.changed),
        }

    def _groups(self) -> list[str]:
        found = {*self.frozen, *map(group_of, self.tensors)}
        return [group for group in GROUPS if group in found]

    def _of_group(self, group: str) -> dict[str, Any]:
        inside = {name: one for name, one in self.tensors.items() if group_of(name) == group}
        trained = sum(one.weights for one in inside.values())
        return {
            "tensors": len(inside),
            "trainable": trained,
            "frozen": self.frozen.get(group, 0),
            **total(inside.values()),
            "without_gradient": len(inside.keys() & set(self.silent)),
            "changed": sum(group_of(name) == group for name in self.changed),
        }


def total(tensors: Collection[TensorLook]) -> dict[str, float | None]:
    """The numbers of several tensors together, each weight counting once."""
    weights = math.fsum(one.weights for one in tensors)
    norms = [one.grad_norm for one in tensors if one.grad_norm is not None]
    return {
        "moved": _ratio(math.fsum(one.moved * one.weights for one in tensors), weights),
        "moved_last": _ratio(math.fsum(one.moved_last * one.weights for one in tensors), weights),
        "update": _ratio(
            math.hypot(*(one.change for one in tensors)), math.hypot(*(one.size for one in tensors))
        ),
        "stuck": stuck_share(tensors),
        "grad_norm": _short(math.hypot(*norms)) if norms else None,
    }


def stuck_share(tensors: Collection[TensorLook]) -> float | None:
    """Of the weights with a gradient in some tensors, the share that is stuck, in [0, 1].

    None where none has a gradient, which says nothing of them.
    """
    wanting = [one.wanting * one.weights for one in tensors]
    stuck = [one.stuck * part for one, part in zip(tensors, wanting, strict=True)]
    whole = math.fsum(wanting)
    return _short(math.fsum(stuck) / whole) if whole else None


def _of_tensor(name: str, one: TensorLook) -> dict[str, Any]:
    return {
        "group": group_of(name),
        "moved": _short(one.moved),
        "moved_last": _short(one.moved_last),
        "update": _ratio(one.change, one.size),
        "stuck": _short(one.stuck) if one.wanting else None,
        "grad_norm": None if one.grad_norm is None else _short(one.grad_norm),
    }


def _ratio(part: float, whole: float) -> float | None:
    return _short(part / whole) if whole else 0.0


def _short(number: float) -> float | None:
    """Four digits; None for what is not finite, which JSON cannot say."""
    return float(f"{number:.4g}") if math.isfinite(number) else None
