"""Options that end a run before its last step.

Not here: which metric chooses (transformers' ``metric_for_best_model``), alarms (``on_alarm``).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunControl:
    """When a run has seen enough; a part of ``CPOConfig``."""

    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Counterpoint: end the run after so many evaluations in a row, >= 1, that were "
            "no better than the best one by metric_for_best_model (loss where none is named); "
            "transformers' name for it. None: never."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Counterpoint: by how much an evaluation must be better to count, >= 0, in the "
            "metric's own unit."
        },
    )
