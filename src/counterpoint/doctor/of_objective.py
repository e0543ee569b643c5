"""Checks of the objective: options in, findings out.

Ranges are those of published settings (``presets``), widened by a factor, since a setting that
differs is no mistake while it is near.

Not here: contradictions, which ``CPOConfig`` refuses itself; options that do nothing
(``of_unused``); steps and batches (``of_batch``).
"""

from __future__ import annotations

from collections.abc import Iterator

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import Finding, find
from counterpoint.doctor.presets import Preset, betas_of, presets_of
from counterpoint.objectives import ALPHAPO, LOSSES

FAR = 4.0
"""Factor beyond the published range from which a value is far from it."""

HIGHEST_RATE, HIGHEST_ADAPTER_RATE = 1e-5, 1e-3
"""Learning rates above which published runs degenerate."""

LOW = 10.0
"""Factor below the published learning rates from which hardly anything moves."""

HIGHEST_ALPHA_NLL = 0.1
"""``cpo_alpha`` up to which a SimPO run is CPO-SimPO as published (0.05)."""

LARGEST_EXPONENT = 709.0
"""What exp of a float64 can take."""

FLAT_EXPONENT = -36.0
"""Where 1 - exp(x) is 1 in float64, so that its slope is lost."""


def of_objective(args: CPOConfig, *, adapted: bool) -> Iterator[Finding]:
    """Compare objective and learning rate with published ones.

    Args:
        args: the run's options.
        adapted: an adapter is trained, and not all weights.
    """
    yield from _nll_term(args)
    yield from _scale(args, presets_of(args.loss_type))
    yield from _learning_rate(args, adapted)
    instead = LOSSES[args.loss_type].at_alpha_zero
    if instead and args.alpha == 0:
        yield find(
            "CW107", f"loss_type={args.loss_type} with alpha=0.", fix=f"loss_type: {instead}"
        )


def _nll_term(args: CPOConfig) -> Iterator[Finding]:
    loss = LOSSES[args.loss_type]
    if loss.nll == 0 and args.cpo_alpha > HIGHEST_ALPHA_NLL:
        named = f"{loss.with_nll}, not {loss.method}"
        name = named if loss.with_nll else f"{loss.method} with an NLL term"
        yield find(
            "CW101",
            f"loss_type={args.loss_type} with cpo_alpha={args.cpo_alpha:g}: this is {name}.",
            fix="cpo_alpha: 0.0",
        )
    if loss.nll and args.cpo_alpha == 0:
        yield find(
            "CW102",
            f"loss_type={args.loss_type} with cpo_alpha=0: this is {loss.method} without its NLL.",
            fix=f"cpo_alpha: {loss.nll}",
        )


def _scale(args: CPOConfig, presets: tuple[Preset, ...]) -> Iterator[Finding]:
    betas = betas_of(args.loss_type)
    if betas and not min(betas) / FAR <= args.beta <= max(betas) * FAR:
        shown = ", ".join(f"{beta:g}" for beta in sorted({*betas}))
        yield find(
            "CW103",
            f"beta={args.beta:g} with loss_type={args.loss_type}; published: {shown} "
            f"({presets[0].source}).",
            fix=f"beta: {betas[0]:g}",
        )
    ratios = [p.ratio for p in presets if p.ratio is not None]
    if not ratios:
        return
    ratio = args.gamma / args.beta
    # twice, not FAR: gamma / beta is a target for the gap itself, not a scale
    if not min(ratios) / 2 <= ratio <= 2 * max(ratios):
        yield find(
            "CW104",
            f"gamma={args.gamma:g} and beta={args.beta:g}, a ratio of {ratio:.3g}; published are "
            f"{min(ratios):g} to {max(ratios):g}.",
            fix="gamma_beta_ratio: 0.5\nsimpo_gamma: 0.5  # its default, so that the ratio counts",
        )


def _learning_rate(args: CPOConfig, adapted: bool) -> Iterator[Finding]:
    rate, published = args.learning_rate, presets_of(args.loss_type)
    highest = HIGHEST_ADAPTER_RATE if adapted else HIGHEST_RATE
    what = "an adapter" if adapted else "all weights"
    similar = [preset.learning_rate for preset in published if preset.adapter == adapted]
    similar = similar or [1e-4 if adapted else 1e-6]
    good = similar[-1]
    if rate > highest:
        yield find("CW105", f"learning_rate={rate:g} for {what}.", fix=f"learning_rate: {good:.0e}")
    elif rate < min(similar) / LOW:
        yield find("CW106", f"learning_rate={rate:g} for {what}.", fix=f"learning_rate: {good:.0e}")


def of_reward(args: CPOConfig, *, nll: float, longest: int) -> Iterator[Finding]:
    """Whether AlphaPO's reward is finite, and has a slope, where the model is.

    Args:
        args: the run's options.
        nll: nats a token of a completion, of the model as it is or as it could be.
        longest: tokens of the longest completion.
    """
    if not args.alpha:
        return
    sums = not LOSSES[args.loss_type].per_token
    exponent = args.alpha * nll * (longest if sums else 1)
    of = f"the sum over {longest:,} tokens" if sums else "the mean over tokens"
    if exponent > LARGEST_EXPONENT or exponent < FLAT_EXPONENT:
        yield find(
            "CW108",
            f"alpha={args.alpha:g} with {of} of {nll:.3g} nats: the exponent is {exponent:.3g}, "
            f"usable are {FLAT_EXPONENT:g} to {LARGEST_EXPONENT:g}.",
            fix=f"loss_type: {ALPHAPO.name}" if sums and args.alpha > 0 else "alpha: 0.1",
        )
