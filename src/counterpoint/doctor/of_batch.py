"""Checks of steps: how many pairs make one, how many there are, and what is to happen at them.

Not here: how a step is cut into micro-batches, which changes nothing (``data.batching``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from counterpoint.config import CPOConfig, accumulation_for, pairs_on
from counterpoint.doctor.findings import Finding, find
from counterpoint.doctor.presets import PAIRS_PER_STEP

FAR = 4
"""Factor from the published pairs per step from which a run is far from them."""

TRIAL_STEPS = 20
"""Steps of the published size below which a run is a trial, whose size says nothing."""

SHORT = 0.25
"""Share of a full step below which an epoch's last one is short."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The arithmetic of a run's steps.

    Args:
        pairs: pairs of a full step, over micro-batches and ranks.
        an_epoch: steps of an epoch; None where the set's length is not known.
        rest: pairs of an epoch's last step where it is not full, else 0.
        total: optimizer steps of the run; None where it is not known.
    """

    pairs: int
    an_epoch: int | None
    rest: int
    total: int | None


def steps_of(args: CPOConfig, pairs: int | None, ranks: int) -> Steps:
    """How many steps a run has.

    Args:
        args: the run's options.
        pairs: usable pairs of the training set; None for a stream.
        ranks: processes that share a step.
    """
    a_step = pairs_on(args, ranks)
    limit = args.max_steps if args.max_steps > 0 else None
    if not pairs:
        return Steps(a_step, None, 0, limit)
    full, rest = divmod(pairs, a_step)
    an_epoch = full if args.dataloader_drop_last else full + (rest > 0)
    total = limit or math.ceil(an_epoch * args.num_train_epochs)
    return Steps(a_step, an_epoch, rest, total)


def of_batch(args: CPOConfig, *, pairs: int | None, ranks: int) -> Iterator[Finding]:
    """Whether pairs, steps, warm-up and what happens at steps fit together.

    Args:
        args: the run's options.
        pairs: usable pairs of the training set; None for a stream, 0 where none is usable.
        ranks: processes that share a step.
    """
    steps = steps_of(args, pairs, ranks)
    yield _told(args, steps, ranks)
    if steps.pairs < ranks:
        yield find("CW129", idle_ranks(steps.pairs, ranks))
    if pairs:
        yield from _fit(args, steps, pairs)
    far = not PAIRS_PER_STEP / FAR <= steps.pairs <= PAIRS_PER_STEP * FAR
    if far and not _is_trial(steps):
        yield find(
            "CW124",
            f"{steps.pairs:,} pairs a step; published runs use {PAIRS_PER_STEP}.",
            fix=_of_so_many(args, PAIRS_PER_STEP, ranks),
        )
    if steps.total:
        yield from _schedule(args, steps.total)


def idle_ranks(pairs: int, ranks: int) -> str:
    """What is said of a step that has fewer pairs than there are ranks."""
    return f"{pairs:,} pairs a step on {ranks:,} ranks: {ranks - pairs:,} of them only wait."


def _is_trial(steps: Steps) -> bool:
    """Whether a run is so short that steps of the published size would be hardly any."""
    return steps.total is not None and steps.total * steps.pairs < TRIAL_STEPS * PAIRS_PER_STEP


def _accumulation(args: CPOConfig, ranks: int) -> int:
    micro_batch = args.per_device_train_batch_size
    return accumulation_for(pairs_on(args, ranks), micro_batch=micro_batch, ranks=ranks)


def _of_so_many(args: CPOConfig, pairs: int, ranks: int) -> str:
    """The option that makes a step of so many pairs, with its value."""
    if args.pairs_per_step is not None:
        return f"pairs_per_step: {pairs}"
    wanted = pairs / (args.per_device_train_batch_size * ranks)
    return f"gradient_accumulation_steps: {max(1, round(wanted))}"


def _told(args: CPOConfig, steps: Steps, ranks: int) -> Finding:
    micro_batches = args.per_device_train_batch_size * ranks * _accumulation(args, ranks)
    most = "" if micro_batches == steps.pairs else "at most "
    text = (
        f"{steps.pairs:,} pairs a step = {most}{args.per_device_train_batch_size} per device x "
        f"{_accumulation(args, ranks)} accumulated x {ranks} "
        f"{'rank' if ranks == 1 else 'ranks'}"
    )
    if steps.an_epoch is not None:
        text += f"; {steps.an_epoch:,} steps an epoch"
    if steps.total is not None:
        text += f"; {steps.total:,} steps in all"
    return find("CN121", f"{text}.")


def _fit(args: CPOConfig, steps: Steps, pairs: int) -> Iterator[Finding]:
    if steps.pairs > pairs:
        fitting = max(1, args.gradient_accumulation_steps * pairs // steps.pairs)
        fix = (
            f"per_device_train_batch_size: {min(args.per_device_train_batch_size, pairs)}\n"
            f"gradient_accumulation_steps: {fitting}"
        )
        yield find(
            "CW121",
            f"a step of {steps.pairs:,} pairs, but {pairs:,} pairs in the data set.",
            fix=fix if args.pairs_per_step is None else f"pairs_per_step: {pairs}",
        )
    elif args.dataloader_drop_last and steps.rest > pairs / 10:
        yield find(
            "CW126",
            f"{steps.rest:,} of {pairs:,} pairs are the rest of an epoch and are dropped.",
            fix="dataloader_drop_last: false",
        )
    elif not args.dataloader_drop_last and 0 < steps.rest < SHORT * steps.pairs:
        yield find(
            "CW122",
            f"the last step of an epoch holds {steps.rest:,} of {steps.pairs:,} pairs.",
            fix="dataloader_drop_last: true",
        )


def _schedule(args: CPOConfig, total: int) -> Iterator[Finding]:
    warm_up = args.get_warmup_steps(total)
    if total > 1 and warm_up > total / 2:
        yield find(
            "CW123",
            f"{warm_up:,} of {total:,} steps are warm-up.",
            fix="warmup_steps: 0.1  # a share of the steps",
        )
    for name in ("logging", "save", "eval"):
        every = getattr(args, f"{name}_steps")
        if getattr(args, f"{name}_strategy") != "steps" or not every:
            continue
        # the last step logs and saves by itself, and a default is no intention
        unset = name != "eval" and every == getattr(CPOConfig, f"{name}_steps")
        if every > total and not unset:
            yield find(
                "CW125",
                f"{name}_steps={every:g}, but the run ends after {total:,} steps.",
                fix=f"{name}_steps: {max(1, total // 10)}",
            )
