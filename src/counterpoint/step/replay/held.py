"""The constraints of a step that is done again: as they stood then, and nothing of them moves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from counterpoint.constraints import Constraint
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.records import PairBatch
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.replay.file import HeldConstraint, Replay


class HeldSet(ConstraintSet):
    """The constraints of a recorded step.

    Args:
        replay: the step.
        own: constraints of the run by name, for those whose functions a file cannot hold.
        policy: what the run began with, for those that run it again; None: they measure nothing.

    Raises:
        ConfigError: as ``Constraint``, for options that contradict each other.
    """

    def __init__(
        self,
        replay: Replay,
        own: Mapping[str, Constraint] | None = None,
        policy: InitialPolicy | None = None,
    ) -> None:
        found = [_asked(one, own or {}) for one in replay.held.all]
        super().__init__(
            [asked for asked in found if asked is not None],
            replay.objective,
            cpo_alpha=0.0,
            normalized=replay.held.normalized,
            raise_alarm=lambda alarm: None,
        )
        self.policy, self._initial_of = policy, replay.held.initial
        there = [asked is not None for asked in found]
        self.totals: Tensor = replay.held.totals[torch.tensor(there, dtype=torch.bool)]
        """Denominators of the step, of those that are here."""
        self.left_out = tuple(
            str(one.asked.get("name"))
            for one, here in zip(replay.held.all, there, strict=True)
            if not here
        )
        """Names of those whose functions are not here."""
        here = [one for one, known in zip(replay.held.all, there, strict=True) if known]
        for one, then in zip(self.all, here, strict=True):
            one.weight, one.bound = then.multiplier, then.bound

    def _initial(self, batch: PairBatch, rows: str | None) -> Tensor | None:
        if not self._initial_of:
            return None
        known = [self._initial_of.get(row, 0.0) for row in batch.row_ids.tolist()]
        return batch.weight.new_tensor(known)


def held_constraint(asked: Constraint, multiplier: float, bound: float | None) -> HeldConstraint:
    """A constraint as a file keeps it."""
    return HeldConstraint(asked.as_dict(), float(multiplier), bound)


def _asked(one: HeldConstraint, own: Mapping[str, Constraint]) -> Constraint | None:
    given = own.get(str(one.asked.get("name")))
    if given is not None:
        return given
    if isinstance(one.asked.get("numerator"), str):
        return None
    return Constraint(**one.asked)
