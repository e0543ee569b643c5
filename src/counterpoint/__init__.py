"""Counterpoint: train language models on preference pairs, exactly.

Import from here and from nowhere deeper. Names are loaded when first used, so that the command
answers ``--help`` without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from counterpoint._version import __version__
from counterpoint.floors import check_floors
from counterpoint.log import quiet_imports

if TYPE_CHECKING:
    from counterpoint.config import CPOConfig
    from counterpoint.console.display import TrainingDisplay
    from counterpoint.constraints import Constraint
    from counterpoint.data.pair_rules import PairRules
    from counterpoint.data.scored import pairs_from_scored
    from counterpoint.errors import (
        ConfigError,
        CounterpointError,
        DataError,
        ModelError,
        NonFiniteError,
        SetupError,
        TrainingError,
    )
    from counterpoint.report.inline import show
    from counterpoint.trainer.trainer import CPOTrainer

__all__ = [
    "CPOConfig",
    "CPOTrainer",
    "ConfigError",
    "Constraint",
    "CounterpointError",
    "DataError",
    "ModelError",
    "NonFiniteError",
    "PairRules",
    "SetupError",
    "TrainingDisplay",
    "TrainingError",
    "__version__",
    "pairs_from_scored",
    "show",
]

_HOMES = {
    "CPOConfig": "counterpoint.config",
    "CPOTrainer": "counterpoint.trainer.trainer",
    "ConfigError": "counterpoint.errors",
    "Constraint": "counterpoint.constraints",
    "CounterpointError": "counterpoint.errors",
    "DataError": "counterpoint.errors",
    "ModelError": "counterpoint.errors",
    "NonFiniteError": "counterpoint.errors",
    "PairRules": "counterpoint.data.pair_rules",
    "SetupError": "counterpoint.errors",
    "TrainingDisplay": "counterpoint.console.display",
    "TrainingError": "counterpoint.errors",
    "pairs_from_scored": "counterpoint.data.scored",
    "show": "counterpoint.report.inline",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its room on first use."""
    if name not in _HOMES:
        msg = f"module 'counterpoint' has no attribute {name!r}"
        raise AttributeError(msg)
    if _HOMES[name] != "counterpoint.errors":
        check_floors()
    with quiet_imports():
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
