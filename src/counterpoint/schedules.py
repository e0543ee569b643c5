"""What each of transformers' schedules of the learning rate follows, as a table.

Not here: making one (transformers), what a run remembers of it (``checkpoint.experiment``), and
options that one leaves unread (``doctor.of_unused``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Follows:
    """What a schedule of the learning rate depends on, beside its own arguments.

    Args:
        steps: the number of steps of the run.
        warm_up: the number of steps of warm-up.
        evaluations: when a run evaluates, and a metric of it.
    """

    steps: bool = False
    warm_up: bool = False
    evaluations: bool = False


SCHEDULES: Mapping[str, Follows] = MappingProxyType(
    {
        "constant": Follows(),
        "constant_with_warmup": Follows(warm_up=True),
        "inverse_sqrt": Follows(warm_up=True),
        "reduce_lr_on_plateau": Follows(evaluations=True),
        "greedy": Follows(evaluations=True),
    }
)
"""transformers' schedules that do not follow the number of steps."""

WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
"""Schedules that ``lr_scheduler_kwargs`` never reaches."""


def name_of(kind: Any) -> str:
    """A schedule's name, of transformers' enumeration or a text."""
    return str(getattr(kind, "value", kind))


def schedule_of(kind: Any, arguments: Mapping[str, Any] | str | None) -> Follows:
    """What the learning rate of a run follows; of a schedule that is not known, its steps too.

    Args:
        kind: ``lr_scheduler_type``.
        arguments: ``lr_scheduler_kwargs``.
    """
    name = name_of(kind)
    # whose last phase begins after a number of steps that is given, and then is as long as it is
    given = arguments if isinstance(arguments, Mapping) else {}
    stable = name == "warmup_stable_decay" and given.get("num_stable_steps") is not None
    return SCHEDULES.get(name, Follows(steps=not stable, warm_up=True))
