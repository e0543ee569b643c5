"""What makes a run this experiment and no other: the facts of its fingerprint.

How long a run is, is not among them, unless something follows it: a learning rate that falls
towards the last step (``schedules``), a multiplier whose pace is a share of the run. So a longer
run of a constant learning rate resumes, and one of a cosine is named as another experiment.

Not here: the comparison (``checkpoint.fingerprint``), and what is done about a difference
(``trainer.resumable``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from counterpoint.checkpoint.fingerprint import Fingerprint, Value
from counterpoint.config import CPOConfig
from counterpoint.constraints import Constraint
from counterpoint.losses.objective import Objective
from counterpoint.objectives import LOSSES
from counterpoint.schedules import Follows, schedule_of

OF_THE_EXPERIMENT = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "stream_shards",
    "optim",
    "optim_args",
    "optim_target_modules",
    "stochastic_rounding",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "disable_dropout",
    "constraint_normalization",
)
"""Options that a run's numbers depend on at every step, whatever the others are."""

PAIRS = "pairs a step"
RATE_STEPS = "steps of the learning rate's schedule"
MULTIPLIER_STEPS = "steps of the multipliers' schedule"
WARM_UP = "steps of warm-up"
PLANNED = (RATE_STEPS, MULTIPLIER_STEPS, WARM_UP)
"""Facts that follow from how long a run is to be."""

EVALUATIONS = ("eval_strategy", "eval_steps")
METRIC = ("metric_for_best_model", "greater_is_better")


def experiment(
    args: CPOConfig,
    objective: Objective,
    digests: Mapping[str, str],
    steps: int,
    *,
    identity: Fingerprint,
    balancing: float,
    scheduled: bool = True,
) -> Fingerprint:
    """What makes a run this experiment and no other.

    Args:
        args: the run's options.
        objective: of the run.
        digests: of the prepared pairs of each set, by its name.
        steps: optimizer steps of the whole run.
        identity: of the model as it was before it trained, see ``checkpoint.adapted``.
        balancing: weight of the load-balancing loss; 0 without experts.
        scheduled: the learning rate's schedule is made from the options, and not one that was
            passed to the trainer.
    """
    return {
        **{f"data {name}": digest for name, digest in digests.items()},
        **asdict(objective),
        **({"reference": args.reference} if LOSSES[args.loss_type].needs_reference else {}),
        "load balancing": balancing,
        **identity,
        PAIRS: args.step_pairs,
        **{name: _plain(getattr(args, name)) for name in OF_THE_EXPERIMENT},
        **dict(_planned(args, steps, _schedule(args) if scheduled else Follows())),
        **{f"constraint {one.name}": _as_text(one) for one in args.constrained_by},
    }


def _schedule(args: CPOConfig) -> Follows:
    return schedule_of(args.lr_scheduler_type, args.lr_scheduler_kwargs)


def _planned(args: CPOConfig, steps: int, rate: Follows) -> Iterator[tuple[str, Value]]:
    """What the learning rate and the multipliers of a run follow."""
    if rate.steps:
        yield RATE_STEPS, steps
    if rate.warm_up:
        yield WARM_UP, args.get_warmup_steps(steps)
    if args.constrained_by:
        yield MULTIPLIER_STEPS, steps
    by_length = any(one.row.of_texts for one in args.constrained_by)
    if rate.evaluations or by_length:
        yield from ((name, _plain(getattr(args, name))) for name in EVALUATIONS)
    if rate.evaluations:
        yield from ((name, _plain(getattr(args, name))) for name in METRIC)


def in_words_of_today(then: Fingerprint, steps: int) -> Fingerprint:
    """A checkpoint's fingerprint with what releases up to 0.4 did not say in it.

    Args:
        then: as its manifest has it.
        steps: optimizer steps that its run was to have.
    """
    facts: dict[str, Value] = {RATE_STEPS: steps, MULTIPLIER_STEPS: steps, "stream_shards": 1}
    given = then.get("warmup_steps")
    if isinstance(given, int | float):  # below 1 it was a share of the run
        facts[WARM_UP] = int(given) if given >= 1 else math.ceil(steps * given)
    return {**facts, **then}


def remedy(different: Collection[str], then: Fingerprint) -> str:
    """What else to do about some differences, as a sentence after a space; "" where nothing.

    Args:
        different: names of facts.
        then: the checkpoint's fingerprint.
    """
    if PAIRS in different:
        return (
            f" pairs_per_step={then[PAIRS]} keeps its steps on any number of ranks and with any "
            "per_device_train_batch_size."
        )
    if not set(PLANNED) & set(different):
        return ""
    return (
        " To train beyond what was planned, take the checkpoint as the model of a new run: with "
        "resume_anyway the schedule leaps to where the new plan has it."
    )


def _as_text(constraint: Constraint) -> str:
    return json.dumps(constraint.as_dict(), sort_keys=True)


def _plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    return value if value is None or isinstance(value, bool | int | float) else str(value)
