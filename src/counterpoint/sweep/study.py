"""Which setting is tried next, and what came of the others: an optuna study in the sweep's folder.

Of lists alone every setting is tried, in order. With a range among them optuna's TPE sampler
(Bergstra et al. 2011) chooses. It is seeded anew for each trial, by seed and number, so that what
is tried next follows from the results so far, whether or not a kill came between them.

Not here: training (``course``). This module alone imports optuna.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.sweep.space import Axis, Point, points

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.db"
"""SQLite of the study, which optuna's own programs open."""

BY_CHANCE = 5
"""Trials drawn at random before the sampler learns from them."""

_REASON, _VOID = "reason", "void"


def check_optuna() -> None:
    """Refuse to go on without optuna.

    Raises:
        SetupError: CP502, with how to install it.
    """
    if find_spec("optuna") is None:
        raise SetupError(
            "CP502", f"a sweep needs the package optuna: {installing(EXTRAS['sweep'])}"
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what came of it.

    Args:
        number: from 0.
        point: the setting.
        state: "running" (or interrupted), "finished" or "failed".
        value: of the metric; None unless it is finished.
        reason: why it failed.
    """

    number: int
    point: Point
    state: str = "running"
    value: float | None = None
    reason: str = ""


class Study:
    """The trials of one sweep.

    Args:
        folder: of the sweep.
        axes: what varies.
        more_is_better: of the metric.
        seed: of the sampler.
    """

    def __init__(
        self, folder: Path, axes: Sequence[Axis], *, more_is_better: bool, seed: int
    ) -> None:
        import optuna
        from sqlalchemy import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._axes, self._seed = optuna, tuple(axes), seed
        self._grid = points(axes)
        self.more_is_better = more_is_better
        address = URL.create("sqlite", database=str(folder.resolve() / STUDY_FILE))
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(address.render_as_string()),
            study_name="sweep",
            direction="maximize" if more_is_better else "minimize",
            load_if_exists=True,
        )
        self._drop_half_asked()

    def trials(self) -> list[Trial]:
        """Every trial so far, by number."""
        return [self._as_trial(one) for one in self._counted()]

    def best(self) -> Trial | None:
        """The best finished trial, the earliest of equals; None where none is finished."""
        done = [one for one in self.trials() if one.value is not None]
        sign = -1 if self.more_is_better else 1
        return min(done, key=lambda one: (sign * float(one.value or 0.0), one.number), default=None)

    def interrupted(self) -> list[Trial]:
        """Trials that were begun and have no result: a kill came between."""
        return [one for one in self.trials() if one.state == "running"]

    def following(self, most: int) -> Trial | None:
        """A new trial, noted down as begun; None where there are ``most``, or the grid is done."""
        so_far = self.trials()
        if len(so_far) >= most:
            return None
        if self._grid is not None:
            tried = [one.point for one in so_far]
            due = next((point for point in self._grid if point not in tried), None)
            if due is None:
                return None
            if not self._study.get_trials(states=(self._optuna.trial.TrialState.WAITING,)):
                self._study.enqueue_trial(dict(due))
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed + len(so_far)) % 2**32, n_startup_trials=BY_CHANCE
        )
        asked = self._study.ask({axis.name: self._distribution(axis) for axis in self._axes})
        return Trial(asked.number, self._point(asked.params))

    def finish(self, number: int, value: float) -> None:
        """Note a trial's result down."""
        self._study.tell(number, value)

    def fail(self, number: int, reason: str) -> None:
        """Note down that a trial has no result, and why."""
        self._attribute(number, _REASON, reason)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    # ---- the study's own ----

    def _counted(self) -> list[FrozenTrial]:
        waiting = self._optuna.trial.TrialState.WAITING
        every = self._study.get_trials(deepcopy=False)
        return [one for one in every if one.state != waiting and _VOID not in one.user_attrs]

    def _drop_half_asked(self) -> None:
        """Set aside what a kill left before its setting was whole; it is asked for again."""
        running = self._optuna.trial.TrialState.RUNNING
        for one in self._counted():
            if one.state == running and len(one.params) < len(self._axes):
                self._attribute(one.number, _VOID, True)
                self._study.tell(one.number, state=self._optuna.trial.TrialState.FAIL)

    def _attribute(self, number: int, name: str, value: Any) -> None:
        every = self._study.get_trials(deepcopy=False)
        self._optuna.trial.Trial(self._study, every[number]._trial_id).set_user_attr(name, value)

    def _as_trial(self, one: FrozenTrial) -> Trial:
        states = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "failed"}
        state = states.get(one.state.name, "running")
        value = one.value if state == "finished" else None
        reason = str(one.user_attrs.get(_REASON, ""))
        return Trial(one.number, self._point(one.params), state, value, reason)

    def _point(self, params: dict[str, Any]) -> Point:
        return {axis.name: axis.word(params[axis.name]) for axis in self._axes}

    def _distribution(self, axis: Axis) -> BaseDistribution:
        kinds = self._optuna.distributions
        found: BaseDistribution
        if axis.values:
            found = kinds.CategoricalDistribution(axis.values)
        elif axis.whole:
            found = kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        else:
            found = kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
        return found
