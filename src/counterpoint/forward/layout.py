"""Which layout a model's batches get, and the proof that it is right.

Sharing prompts is faster and changes nothing, where a model allows it. What is known to forbid it
is named here with its reason; for the rest, the shared layout is compared with the padded one on
the first pairs of the run, in value and gradient and without autocast, and given up where they
disagree. Those pairs may be shorter than a window of attention; so the window must also be seen
to reach our attention.

Not here: the layouts themselves (``data.collate``, ``shared_attention``), the kernel that shared
rows use in 16 bits on CUDA (``kernel_proof``).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.forward.gradient_proof import (
    NARROW,
    WIDE,
    largest_difference,
    left_as_it_was,
    sampled_gradient,
)
from counterpoint.forward.head import Head
from counterpoint.forward.kernel_proof import prove_kernel
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.shared_attention import BACKENDS, shared_attention, watched_calls
from counterpoint.forward.varlen_attention import AttentionCall
from counterpoint.records import PairBatch, PairLogps

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers, as transformers' configurations name them, that only look back in attention."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference of a mean log-probability, relative where above 1 nat, by weights' dtype."""

NARROW_TOLERANCE = 5e-2
"""The same for weights in 16 bits, whose rounding alone makes a percent; a wrong mask makes ten."""


def why_not_shared(model: nn.Module, *, dropout_stays: bool = True) -> str | None:
    """What forbids a model to share prompts, in words; None if nothing known does.

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
        dropout_stays: False for a model whose dropout will be turned off before it trains.
    """
    inner: Any = model
    if any(getattr(c, "is_prompt_learning", False) for c in _adapters(inner)):
        return "prompt learning puts its own tokens before each row"
    attention = getattr(inner.config, "_attn_implementation", None)
    if attention not in BACKENDS:
        return f"attention runs through {attention}, not through {' or '.join(BACKENDS)}"
    can_set = getattr(inner, "_can_set_attn_implementation", None)
    if can_set is None or not can_set():
        return "its attention cannot be exchanged through transformers' interface"
    config = inner.config.get_text_config()
    strange = set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS
    if strange:
        return f"it has layers of kind {', '.join(sorted(strange))}"
    if _jitter(inner):
        return "its routers add noise, which would fall on a shared prompt once instead of twice"
    if dropout_stays and _dropout(inner):
        return "dropout is on, and would fall on a shared prompt once instead of twice"
    return None


def why_padded(
    model: nn.Module, wanted: str, device: str, *, dropout_stays: bool = True
) -> str | None:
    """Why a run's batches are padded, as far as it is known before any is computed.

    Args:
        model: as for ``why_not_shared``.
        wanted: the option ``layout``.
        device: kind of device that the run is on.
        dropout_stays: as for ``why_not_shared``.

    Returns:
        None where only ``layouts_disagree`` can still say so.
    """
    if wanted == "padded":
        return "as asked for"
    reason = why_not_shared(model, dropout_stays=dropout_stays)
    if reason is None and wanted == "auto" and device != "cpu":
        reason = "sharing has been measured on CPUs only; layout='shared' turns it on"
    return reason


def layouts_disagree(
    model: nn.Module, head: Head, shared: PairBatch, padded: PairBatch
) -> str | None:
    """Compare both layouts of the same pairs, and prove the kernel that shared rows may use.

    Call it under the run's autocast: it turns it off, but the kernel runs in its dtype.

    Args:
        model: unwrapped, on the device of the batches.
        head: proved.
        shared: some pairs, at least two to see that they do not see each other.
        padded: the same pairs.

    Returns:
        None where they agree; else what was seen.
    """
    device = padded.input_ids.device.type
    weights = next(parameter.dtype for parameter in model.parameters())
    running = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights
    try:
        with left_as_it_was(model), torch.enable_grad(), full_precision(model, device):
            expected = _value_and_gradient(model, head, padded)
            with shared_attention(model), watched_calls() as calls:
                found = _value_and_gradient(model, head, shared)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    differ = _unseen(model, calls) or _differ(model, expected, found, weights)
    if differ:
        return differ
    for call in calls:
        prove_kernel(call, shared.segments, running, padded.input_ids.device)
    return None


def _value_and_gradient(
    model: nn.Module, head: Head, batch: PairBatch
) -> tuple[PairLogps, list[Tensor]]:
    """Log-probabilities of some pairs, and a gradient in which each completion counts otherwise."""
    logps = pair_forward(model, head, batch).logps
    times = torch.arange(1, len(batch) + 1, device=logps.chosen.device)
    chosen, rejected = logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens
    total = (times * (chosen - 0.5 * rejected)).sum()
    gradient = sampled_gradient(total, [w for w in model.parameters() if w.requires_grad])
    return replace(logps, chosen=logps.chosen.detach(), rejected=logps.rejected.detach()), gradient


def _differ(
    model: nn.Module,
    expected: tuple[PairLogps, list[Tensor]],
    found: tuple[PairLogps, list[Tensor]],
    weights: torch.dtype,
) -> str | None:
    """What differs by more than rounding: log-probabilities, or the gradient of a weight."""
    limit = TOLERANCE.get(weights, NARROW_TOLERANCE)
    worst = 0.0
    for side in ("chosen", "rejected"):
        tokens = getattr(expected[0], f"{side}_tokens")
        one, other = getattr(expected[0], side) / tokens, getattr(found[0], side) / tokens
        worst = max(worst, float(((one - other).abs() / one.abs().clamp(min=1)).max()))
    # a comparison with NaN is false, hence the negation
    if not worst <= limit:
        return f"log-probabilities differ by {worst:.1e} where {limit:.0e} is rounding"
    limit = WIDE if weights in TOLERANCE else NARROW
    place, worst = largest_difference(expected[1], found[1])
    if not worst <= limit:
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        return (
            f"the gradient of {names[place]} differs by {worst:.1e} where {limit:.0e} is rounding"
        )
    return None


@contextmanager
def full_precision(model: nn.Module, device: str) -> Iterator[None]:
    """Without autocast, also where accelerate has put it into the model's own forward.

    Args:
        model: unwrapped from distributed training.
        device: kind of device.
    """
    own = vars(model)
    inside, plain = own.get("forward"), own.get("_original_forward")
    if inside is not None and plain is not None:
        own["forward"] = plain
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if inside is not None:
            own["forward"] = inside


def _unseen(model: nn.Module, calls: Set[AttentionCall]) -> str | None:
    """What attention was not told, though it must know it to share."""
    if not calls:
        return "the model does not hand the layout of a row on to its attention"
    inner: Any = model
    config = inner.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    slides = layers is None or "sliding_attention" in layers
    if window and slides and all(call.window is None for call in calls):
        return f"its window of {window} positions is known to masks only, not to its attention"
    return None


def _adapters(model: Any) -> list[Any]:
    configs = getattr(model, "peft_config", None)
    return list(configs.values()) if isinstance(configs, dict) else []


def _jitter(model: nn.Module) -> bool:
    return any(
        isinstance(value, float) and value > 0 and "jitter" in name
        for module in model.modules()
        for name, value in vars(module).items()
    )


def _dropout(model: nn.Module) -> bool:
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    rates += [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop"))
    ]
    return any(rate > 0 for rate in rates)
