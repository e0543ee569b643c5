"""A run that no longer gets better ends early, and says so.

The counting is transformers' own, so that a checkpoint keeps it and a resumed run counts on.

Not here: which metric that may be (``trainer.best``), alarms (``alarms``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import EarlyStoppingCallback

from counterpoint.log import logger
from counterpoint.metric_names import PREFIX


class Patience(EarlyStoppingCallback):
    """Ends a training after evaluations in a row that were no better than the best before them."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """What it needs was asked for before, by ``trainer.best.check_best_metric``."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **facts: Any
    ) -> None:
        """Count, and say once that the run ends; of several sets the one with the metric counts."""
        ended, metric = control.should_training_stop, args.metric_for_best_model
        if f"{PREFIX}{metric.removeprefix(PREFIX)}" not in metrics:
            return
        super().on_evaluate(args, state, control, metrics, **facts)
        if control.should_training_stop and not ended and state.is_world_process_zero:
            logger().info(
                "step %d: %s was not better than %.6g in %d evaluations in a row: the run ends "
                "here (early_stopping_patience)",
                state.global_step,
                metric,
                state.best_metric,
                self.early_stopping_patience_counter,
            )


def patience_of(args: Any) -> Iterator[Patience]:
    """What ends a run early, where its options ask for that.

    Args:
        args: a ``CPOConfig``.
    """
    if args.early_stopping_patience is not None:
        yield Patience(args.early_stopping_patience, args.early_stopping_threshold)
