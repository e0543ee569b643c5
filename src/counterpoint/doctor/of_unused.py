"""Options that do nothing in a run: each with what it belongs to, as a table.

An option may depend on another one, on there being a set to evaluate on, or on what a script
handed to the trainer. The doctor knows the options and the sets; the trainer asks the same table
again with all that it was given, so that a script hears of it too.

Not here: options that contradict each other, which ``CPOConfig`` refuses itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from counterpoint.config import SAMPLING, CPOConfig
from counterpoint.doctor.findings import Finding, find
from counterpoint.objectives import LOSSES, Loss
from counterpoint.schedules import WITHOUT_ARGUMENTS, name_of, schedule_of

CODE = "CW109"


@dataclass(frozen=True, slots=True)
class Rest:
    """What of a run its options do not say.

    Args:
        evaluates: there is a set to evaluate on.
        streams: the training set is a stream.
        resumes: it begins with a checkpoint; None where that is not known yet.
        own_optimizer: a script handed over an optimizer.
        own_schedule: a script handed over a schedule of the learning rate.
    """

    evaluates: bool
    streams: bool = False
    resumes: bool | None = None
    own_optimizer: bool = False
    own_schedule: bool = False


_Reason = Callable[[CPOConfig, Rest], "str | None"]


def _when(condition: Callable[[CPOConfig, Rest], bool], reason: str) -> _Reason:
    return lambda args, rest: reason if condition(args, rest) else None


def _without(option: str, reason: Callable[[Loss], str]) -> _Reason:
    """Why an option does nothing with a loss that does not read it."""

    def of(args: CPOConfig, rest: Rest) -> str | None:
        loss = LOSSES[args.loss_type]
        return None if loss.reads(option) else reason(loss)

    return of


def _first(*reasons: _Reason) -> _Reason:
    def of(args: CPOConfig, rest: Rest) -> str | None:
        return next((why for reason in reasons if (why := reason(args, rest))), None)

    return of


def _reads_betas(args: CPOConfig) -> bool:
    return any(kind in name_of(args.optim) for kind in ("adam", "ademamix", "lion"))


def _is_plain(args: CPOConfig) -> bool:
    return name_of(args.optim) in ("adamw_torch", "adamw_torch_fused", "adafactor")


def _is_low_rank(args: CPOConfig) -> bool:
    return any(kind in name_of(args.optim) for kind in ("galore", "apollo"))


def _own_start(args: CPOConfig, rest: Rest) -> str | None:
    started = [one for one in args.constrained_by if one.start is not None]
    found = next((one.kind for one in started if one.row.nll_weight), None)
    return found and f"constraint {found} has a start of its own"


def _watches(args: CPOConfig) -> bool:
    return schedule_of(args.lr_scheduler_type, None).evaluations


def _chooses(args: CPOConfig) -> bool:
    stops = args.early_stopping_patience is not None
    best = args.load_best_model_at_end or args.save_strategy == "best"
    return bool(best or stops or _watches(args))


def _hears_nothing(args: CPOConfig, rest: Rest) -> bool:
    """Whether nothing looks at a run: neither its log, its weights, its samples nor its bounds."""
    samples = args.generate_during_eval and rest.evaluates
    looks = args.logging_strategy != "no" or args.monitor_steps or args.constrained_by
    return not (looks or samples)


_not_evaluating = _when(lambda a, r: not r.evaluates, "there is no eval_dataset")
_streaming = _when(lambda a, r: r.streams, "a stream is read in its order, by this process")
_own_optimizer = _when(lambda a, r: r.own_optimizer, "the trainer was given an optimizer")
_own_schedule = _when(lambda a, r: r.own_schedule, "the trainer was given a schedule")
_not_choosing = _when(
    lambda a, r: not _chooses(a),
    "neither the best model, the end nor the learning rate is chosen by it",
)
_not_saving = _when(lambda a, r: a.save_strategy == "no", "save_strategy is no")
_betas = _when(lambda a, r: not _reads_betas(a), "the optimizer is not of Adam's kind")
_not_checkpointing = _when(
    lambda a, r: not a.gradient_checkpointing, "gradient_checkpointing is off"
)
_one_process = _when(lambda a, r: a.world_size == 1, "there is one process")

UNUSED: dict[str, _Reason] = {
    # of the objective
    "beta": _without("beta", lambda loss: f"{loss.method} has no beta"),
    "cpo_alpha": _first(
        _without("cpo_alpha", lambda loss: f"{loss.name} has no NLL term"),
        _own_start,
    ),
    "nll_reduction": _when(lambda a, r: a.cpo_alpha == 0, "cpo_alpha is 0, so there is no NLL"),
    # of the evaluations
    "generate_during_eval": _not_evaluating,
    **dict.fromkeys(SAMPLING, _not_evaluating),
    "per_device_eval_batch_size": _not_evaluating,
    "prediction_loss_only": _not_evaluating,
    "eval_steps": _when(lambda a, r: a.eval_strategy != "steps", "eval_strategy is not steps"),
    "eval_delay": _when(lambda a, r: a.eval_strategy == "no", "eval_strategy is no"),
    "metric_for_best_model": _not_choosing,
    "greater_is_better": _not_choosing,
    # of what is written
    "on_alarm": _when(
        _hears_nothing,
        "nothing that could raise an alarm is looked at (logging_strategy, monitor_steps, "
        "generate_during_eval, constraints)",
    ),
    "logging_steps": _when(
        lambda a, r: a.logging_strategy != "steps", "logging_strategy is not steps"
    ),
    "save_steps": _when(lambda a, r: a.save_strategy != "steps", "save_strategy is not steps"),
    "save_total_limit": _not_saving,
    "save_only_model": _not_saving,
    "resume_anyway": _when(lambda a, r: r.resumes is False, "nothing is resumed"),
    # of the steps
    "num_train_epochs": _when(lambda a, r: a.max_steps > 0, "max_steps is set, and counts"),
    "data_seed": _first(
        _when(
            lambda a, r: a.train_sampling_strategy == "sequential", "rows are taken in their order"
        ),
        _streaming,
    ),
    "train_sampling_strategy": _streaming,
    "stream_shards": _when(lambda a, r: not r.streams, "the training set is not streamed"),
    "dataset_num_proc": _streaming,
    "dataloader_persistent_workers": _streaming,
    "dataloader_prefetch_factor": _streaming,
    "dataloader_multiprocessing_context": _streaming,
    "remove_unused_columns": _when(lambda a, r: True, "columns are chosen by their meaning"),
    "ddp_find_unused_parameters": _one_process,
    "ddp_bucket_cap_mb": _one_process,
    "ddp_broadcast_buffers": _one_process,
    "gradient_checkpointing_kwargs": _not_checkpointing,
    "checkpointing_share": _not_checkpointing,
    "activation_offload": _when(
        lambda a, r: a.device.type == "cpu", "on a CPU they are in the host's memory already"
    ),
    "optimizer_offload": _when(
        lambda a, r: a.device.type == "cpu", "on a CPU all of it is in the host's memory already"
    ),
    # of the optimizer and the learning rate
    "optim": _own_optimizer,
    "learning_rate": _own_optimizer,
    "weight_decay": _own_optimizer,
    "adam_beta1": _first(_own_optimizer, _betas),
    "adam_beta2": _first(_own_optimizer, _betas),
    "adam_epsilon": _first(
        _own_optimizer,
        _betas,
        _when(lambda a, r: "lion" in name_of(a.optim), "Lion has no epsilon"),
    ),
    "optim_args": _first(
        _own_optimizer, _when(lambda a, r: _is_plain(a), "the optimizer takes none")
    ),
    "optim_target_modules": _first(
        _own_optimizer,
        _when(lambda a, r: not _is_low_rank(a), "the optimizer is neither GaLore nor APOLLO"),
    ),
    "lr_scheduler_type": _own_schedule,
    "warmup_steps": _first(
        _own_schedule,
        _when(
            lambda a, r: not schedule_of(a.lr_scheduler_type, None).warm_up,
            "the schedule has no warm-up; constant_with_warmup has",
        ),
    ),
    "lr_scheduler_kwargs": _first(
        _own_schedule,
        _when(
            lambda a, r: name_of(a.lr_scheduler_type) in WITHOUT_ARGUMENTS,
            "the schedule takes none",
        ),
    ),
}
"""Option -> why it does nothing in a run, or None where it does something."""


def of_unused(args: CPOConfig, rest: Rest) -> Iterator[Finding]:
    """Options that were given another value than their default and that nothing will read.

    Args:
        args: the run's options.
        rest: what else the run is made of.
    """
    for name, reason in unused(args, rest).items():
        yield find(
            CODE,
            f"{name}={_shown(getattr(args, name))}: {reason}.",
            fix=f"# {name}: leave it out",
        )


def unused(args: CPOConfig, rest: Rest) -> dict[str, str]:
    """The same as option and reason."""
    # releases of transformers differ in options; what was given is not what was made of it
    given = {name: UNUSED[name](args, rest) for name in UNUSED if name in args.changed}
    return {name: why for name, why in given.items() if why}


def in_a_line(args: CPOConfig, found: dict[str, str]) -> str:
    """What a trainer says of options that do nothing, with the code.

    Args:
        args: the run's options.
        found: of ``unused``, at least one.
    """
    parts = (f"{name}={_shown(getattr(args, name))} ({why})" for name, why in found.items())
    count = "an option does" if len(found) == 1 else f"{len(found)} options do"
    return f"{CODE} {count} nothing in this run: {'; '.join(parts)}."


def _shown(value: Any) -> str:
    return repr(getattr(value, "value", value))
