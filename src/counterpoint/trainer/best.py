"""The metric that chooses: the best model, when to stop early, a learning rate on a plateau.

It is looked for before the first step: a name that no evaluation gives would end the run at its
first save, or leave early stopping without a word.

Not here: choosing (``transformers.Trainer``), what the metrics are (``metric_names``).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError
from counterpoint.metric_names import (
    OF_CONSTRAINT,
    OF_EXPERTS,
    OF_PACE,
    OF_PAIRS,
    OF_TEXTS,
    OF_WEIGHTS,
    PREFIX,
    more_is_better,
)
from counterpoint.runlog import constraint_metric

MOST_NAMED = 14
"""Names that an error lists."""


def check_evaluated(args: CPOConfig, eval_dataset: Any) -> None:
    """Refuse to evaluate while training on a set that nobody gave.

    Args:
        args: the run's options.
        eval_dataset: as the trainer was given it.

    Raises:
        ConfigError: CP107.
    """
    asked = {
        f"eval_strategy={getattr(args.eval_strategy, 'value', args.eval_strategy)}": (
            args.eval_strategy != IntervalStrategy.NO
        ),
        "eval_on_start": args.eval_on_start,
    }
    wanting = next((name for name, on in asked.items() if on), None)
    empty = isinstance(eval_dataset, Mapping) and not eval_dataset
    if wanting and (eval_dataset is None or empty):
        raise ConfigError("CP107", f"eval_dataset is missing: {wanting} needs one.")


def check_best_metric(trainer: Any) -> None:
    """Refuse a metric that no evaluation of this run will give, before its first step.

    Args:
        trainer: a ``CPOTrainer``, about to train.

    Raises:
        ConfigError: CP108 for a name that there is not, CP104 where the best would be the worst,
            CP107 where something chooses by a metric and none is named or measured.
    """
    args: CPOConfig = trainer.args
    wanted = prefixed(args.metric_for_best_model)
    for who in _choosing(trainer):
        if wanted is None:
            raise ConfigError("CP107", f"metric_for_best_model is missing: {who} goes by it.")
        if args.eval_strategy == IntervalStrategy.NO:
            raise ConfigError(
                "CP107",
                f"eval_strategy is missing: {who} goes by {wanted}, which an evaluation gives.",
            )
    if wanted is None or args.eval_strategy == IntervalStrategy.NO:
        return
    known = names_given(trainer)
    if wanted not in known and not _has_own(trainer):  # a user's own are known when they were made
        raise not_given(str(args.metric_for_best_model), known)
    better = more_is_better(wanted) if wanted in known else None
    if better is not None and bool(args.greater_is_better) != better:
        raise ConfigError(
            "CP104",
            f"greater_is_better={args.greater_is_better} with metric_for_best_model="
            f"{args.metric_for_best_model} would take the worst for the best; leave "
            f"greater_is_better out, or set it to {better}.",
        )


def not_given(wanted: str, given: Collection[str]) -> ConfigError:
    """The error of a metric that no evaluation gives.

    Args:
        wanted: its name.
        given: the names that there are.
    """
    named = sorted(given, key=lambda name: _likeness(wanted, name), reverse=True)
    near = f"; did you mean {named[0]}?" if named and _likeness(wanted, named[0]) > 0.5 else "."
    shown = ", ".join([*named[:MOST_NAMED], *(["..."] if len(named) > MOST_NAMED else [])])
    return ConfigError(
        "CP108",
        f"metric_for_best_model={wanted} is given by no evaluation of this run{near} There are "
        f"{shown}.",
    )


def prefixed(metric: str | None) -> str | None:
    """A metric's name as an evaluation gives it."""
    return metric if metric is None or metric.startswith(PREFIX) else f"{PREFIX}{metric}"


def names_given(trainer: Any) -> list[str]:
    """Every metric that an evaluation of a run gives, but for those of ``compute_metrics``.

    Args:
        trainer: a ``CPOTrainer``.
    """
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {"": None}
    return [
        f"{PREFIX}{name}_{metric}" if name else f"{PREFIX}{metric}"
        for name in sets
        for metric in _of_a_set(trainer)
    ]


def _of_a_set(trainer: Any) -> Iterator[str]:
    args: CPOConfig = trainer.args
    yield from (*OF_PAIRS, *OF_PACE)
    if trainer.balances:
        yield from OF_EXPERTS
    if args.use_weighting:
        yield from OF_WEIGHTS
    if args.generate_during_eval:
        for kind in ("", "sampled_") if args.eval_sample_temperature else ("",):
            yield from (f"samples/{kind}{name}" for name in OF_TEXTS)
    for one in args.constrained_by:
        yield from (constraint_metric(one.name, key) for key in OF_CONSTRAINT)


def _has_own(trainer: Any) -> bool:
    """Whether an evaluation may give metrics that are a user's own."""
    if trainer.compute_metrics is not None and not trainer.args.prediction_loss_only:
        return True
    methods = (getattr(trainer, name) for name in ("evaluate", "evaluation_loop"))
    return any(not one.__module__.startswith(("counterpoint.", "transformers.")) for one in methods)


def _choosing(trainer: Any) -> Iterator[str]:
    """What chooses by a metric, in words."""
    if trainer.args.load_best_model_at_end:
        yield "load_best_model_at_end"
    if any(isinstance(c, EarlyStoppingCallback) for c in trainer.callback_handler.callbacks):
        yield "EarlyStoppingCallback"
    if isinstance(trainer.lr_scheduler, ReduceLROnPlateau):
        yield "the scheduler ReduceLROnPlateau"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, prefixed(one) or "", other).ratio()
