"""How two saved models or adapters differ, tensor by tensor and group by group.

Every entry is compared, not a sample: ``moved`` is the share of entries whose value differs, and
``update`` the norm of the difference over the norm of what is there afterwards, as in the monitor's
looks. Three of its numbers are missing here: ``moved_last``, as there is no look between, and
``stuck`` and ``grad_norm``, since files say nothing of gradients.

Not here: reading files (``weight_files``), the table (``cli.diff``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from counterpoint.language import phrase
from counterpoint.monitor.groups import GROUPS, group_of
from counterpoint.monitor.weight_files import Entry, WeightFiles
from counterpoint.notebook import notebook_html, rows_shown

WRAPPERS = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before the names of a model that was saved inside them."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor that both sides have, in the same shape.

    Args:
        group: one of ``groups.GROUPS``.
        weights: its entries.
        moved: share of entries that differ, in [0, 1].
        change: norm of the difference, >= 0.
        size: norm of what is there afterwards, >= 0.
        largest: greatest absolute difference of an entry, >= 0.
        dtypes: of both sides where they differ, for example ("F32", "BF16").
    """

    group: str
    weights: int
    moved: float
    change: float
    size: float
    largest: float
    dtypes: tuple[str, str] | None = None

    @property
    def update(self) -> float:
        """The norm of the difference over the norm of what is there afterwards."""
        return _relative(self.change, self.size)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sets of tensors, compared.

    Args:
        tensors: those of both sides with the same shape.
        shapes: those whose shapes differ, with both.
        added: those that only the second side has.
        removed: those that only the first side has.
    """

    tensors: Mapping[str, TensorDifference]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    added: Mapping[str, Entry]
    removed: Mapping[str, Entry]

    @property
    def same(self) -> bool:
        """Whether both sides hold the same tensors with the same values and dtypes."""
        others = self.shapes or self.added or self.removed
        return not others and not any(one.moved or one.dtypes for one in self.tensors.values())

    def groups(self) -> dict[str, dict[str, Any]]:
        """The numbers of each group that has a tensor of both sides, and of "all"."""
        every = list(self.tensors.values())
        found = {group: [one for one in every if one.group == group] for group in GROUPS}
        return {
            name: _summed(inside) for name, inside in (*found.items(), ("all", every)) if inside
        }

    def in_words(self) -> str:
        """Whether the two are the same, or how much of them differs."""
        if self.same:
            text = "the same: all {count} tensors hold the same values"
            return phrase(text, count=f"{len(self.tensors):,}")
        moved = sum(bool(one.moved) for one in self.tensors.values())
        text = "{moved} of the {count} tensors of both differ"
        return phrase(text, moved=f"{moved:,}", count=f"{len(self.tensors):,}")

    def _repr_html_(self) -> str:
        """The difference as tables, in a notebook: groups, then tensors, most changed first."""
        numbers = ("moved", "update", "largest")
        groups = [
            (
                name,
                one["tensors"],
                one["weights"],
                *_shown(one["moved"], one["update"], one["largest"]),
            )
            for name, one in self.groups().items()
        ]
        names = sorted(self.tensors, key=lambda name: self.tensors[name].update, reverse=True)
        tensors = [
            (name, one.group, *_shown(one.moved, one.update, one.largest))
            for name, one in ((name, self.tensors[name]) for name in names)
        ]
        apart = [
            *(
                (
                    name,
                    phrase("another shape: {before}, then {after}", before=list(a), after=list(b)),
                )
                for name, (a, b) in self.shapes.items()
            ),
            *((name, phrase("only before")) for name in self.removed),
            *((name, phrase("only after")) for name in self.added),
        ]
        return notebook_html(
            self.in_words(),
            rows_shown(("group", "tensors", "weights", *numbers), groups, label="groups"),
            rows_shown(("tensor", "group", *numbers), tensors, label="tensors"),
            rows_shown(("tensor", "not compared"), apart, label="not compared"),
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "same": self.same,
            "groups": self.groups(),
            "tensors": {
                name: _finite({**asdict(one), "update": one.update})
                for name, one in self.tensors.items()
            },
            "shapes": {name: [list(shape) for shape in both] for name, both in self.shapes.items()},
            "added": {name: asdict(entry) for name, entry in self.added.items()},
            "removed": {name: asdict(entry) for name, entry in self.removed.items()},
        }


def compare_weights(before: WeightFiles, after: WeightFiles) -> Difference:
    """Compare two sets of files; no more than a part of a tensor is in memory at a time.

    Args:
        before: the first side.
        after: the second.
    """
    ours, theirs = _plain_names(before), _plain_names(after)
    shapes, tensors = {}, {}
    for name in ours:
        if name not in theirs:
            continue
        old, new = before.entries[ours[name]], after.entries[theirs[name]]
        if old.shape != new.shape:
            shapes[name] = (old.shape, new.shape)
            continue
        moved, change, size, largest = 0, 0.0, 0.0, 0.0
        parts = zip(before.parts(ours[name]), after.parts(theirs[name]), strict=True)
        for one, other in parts:
            found = _compared(one, other)
            moved, change, size = moved + int(found[0]), change + found[1], size + found[2]
            largest = max(largest, found[3])
        tensors[name] = TensorDifference(
            group=group_of(name),
            weights=new.weights,
            moved=moved / max(1, new.weights),
            change=math.sqrt(change),
            size=math.sqrt(size),
            largest=largest,
            dtypes=None if old.dtype == new.dtype else (old.dtype, new.dtype),
        )
    return Difference(
        tensors=tensors,
        shapes=shapes,
        added={n: after.entries[theirs[n]] for n in theirs if n not in ours},
        removed={n: before.entries[ours[n]] for n in ours if n not in theirs},
    )


def percent(share: float) -> str:
    """A share of which neither end is reached by rounding."""
    if 0 < share < 1e-4:
        return "<0.01%"
    if 0.9999 < share < 1:
        return ">99.99%"
    return f"{share:.2%}"


def _shown(moved: float, *others: float | None) -> list[str]:
    return [percent(moved), *("-" if one is None else f"{one:.3g}" for one in others)]


def _compared(one: Tensor, other: Tensor) -> list[float]:
    """Entries that differ, sums of squares of the difference and of the second, and the largest."""
    old, new = one.double().flatten(), other.double().flatten()
    # what is not a number is not even equal to itself
    moved = (old != new) & ~(old.isnan() & new.isnan())
    change = torch.where(moved, new - old, 0.0)
    largest = change.abs().max() if len(change) else change.sum()
    found: list[float] = torch.stack(
        [moved.sum().double(), change.square().sum(), new.square().sum(), largest]
    ).tolist()
    return found


def _plain_names(files: WeightFiles) -> dict[str, str]:
    """Names without wrappers -> names in the files."""
    found = {}
    for name in files.entries:
        plain = name
        while plain.startswith(WRAPPERS):
            plain = plain.split(".", 1)[1]
        found[plain] = name
    return found


def _summed(tensors: Collection[TensorDifference]) -> dict[str, Any]:
    weights = sum(one.weights for one in tensors)
    change = math.hypot(*(one.change for one in tensors))
    size = math.hypot(*(one.size for one in tensors))
    numbers = {
        "tensors": len(tensors),
        "weights": weights,
        "moved": sum(one.moved * one.weights for one in tensors) / max(1, weights),
        "update": _relative(change, size),
        "largest": max(one.largest for one in tensors),
    }
    return _finite(numbers)


def _relative(change: float, size: float) -> float:
    return change / size if size else math.inf if change else 0.0


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """None in place of what is not finite, which JSON cannot say."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }
