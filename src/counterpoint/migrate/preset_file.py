"""A published setting as the lines of a run's file, each with why it is so.

Not here: the settings themselves (``doctor.presets``), and writing the file (``cli.init``).
"""

from __future__ import annotations

from collections.abc import Iterator

from counterpoint.doctor.presets import Preset
from counterpoint.migrate.run_file import Line
from counterpoint.objectives import LOSSES, SIMPO, Loss

PAIRS_AT_ONCE = 4
"""Pairs of a micro-batch where nothing is known of the machine."""


def split_of_step(pairs: int) -> tuple[int, int]:
    """How one device works through the pairs of a step: pairs at once, and how often.

    Whatever the split, the step is the same; only memory and speed depend on it. What is known
    of the machine is to decide here, once it is known.

    Args:
        pairs: of an optimizer step.
    """
    return PAIRS_AT_ONCE, max(1, round(pairs / PAIRS_AT_ONCE))


def lines_of(preset: Preset) -> Iterator[Line]:
    """The options of a published setting, with reasons.

    Args:
        preset: of ``doctor.presets``.
    """
    yield from _objective(preset)
    at_once, times = split_of_step(preset.pairs)
    yield Line("max_length", preset.max_length, "tokens of prompt + completion, as published")
    yield Line("per_device_train_batch_size", at_once, "for memory and speed alone; see below")
    yield Line(
        "gradient_accumulation_steps",
        times,
        f"{preset.pairs} pairs a step, as published, = {at_once} x {times} on one device. Only "
        "the product counts: on N devices divide this by N",
    )
    yield Line("num_train_epochs", preset.epochs, "as published")
    yield from _optimizer(preset)


def _objective(preset: Preset) -> Iterator[Line]:
    if preset.lora_r is not None:
        yield Line("lora_r", preset.lora_r, "an adapter was trained, not all weights; needs peft")
    yield Line("loss_type", preset.loss_type, preset.method)
    loss = LOSSES[preset.loss_type]
    if preset.beta is not None:
        yield Line("beta", preset.beta, _beta(loss))
        if preset.ratio is not None:
            nats = f"{preset.ratio * preset.beta:g} nats"
            what = f"what chosen must win by, as a multiple of beta: {nats}"
            yield Line("gamma_beta_ratio", preset.ratio, what)
    if loss.at_alpha_zero:
        at_zero = LOSSES[loss.at_alpha_zero].method
        alpha = f"shape of the reward; 0 would be {at_zero}. No NLL term"
        yield Line("alpha", preset.alpha, alpha)
        return
    why = loss.nll_note or f"a little NLL of the chosen, which {loss.method} does without"
    if preset.cpo_alpha == 0:
        instead = loss.with_nll or f"{loss.method} with one"
        why = f"no NLL term; without this line it is 1, and the run {instead}"
    yield Line("cpo_alpha", preset.cpo_alpha, why)


def _beta(loss: Loss) -> str:
    if loss.beta:
        return f"{loss.beta} (the paper's {loss.beta_in_paper})"
    if loss.per_token:
        return "scales a difference of means over tokens"
    return (
        "scales a difference of sums over tokens; "
        f"{SIMPO.method}'s, of means, are 20 times as large"
    )


def _optimizer(preset: Preset) -> Iterator[Line]:
    rate = "of the adapter" if preset.adapter else "of all weights; above 1e-5 runs degenerate"
    yield Line("learning_rate", preset.learning_rate, rate)
    yield Line("lr_scheduler_type", preset.schedule, "as published")
    share = preset.warmup_steps < 1
    what = "a share of the run" if share else "steps, a good part of a short run"
    yield Line("warmup_steps", preset.warmup_steps, what)
    if preset.weight_decay:
        yield Line("weight_decay", preset.weight_decay, "as published")
