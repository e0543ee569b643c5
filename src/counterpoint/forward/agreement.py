"""The proof that a layout is right: it agrees with padded rows on the first pairs of a run.

A faster layout changes nothing, where a model allows it. What is known to forbid it says the
layout itself; for the rest, it is compared with the padded one in value and gradient, without
autocast, and given up where they disagree. Those pairs may be shorter than a window of attention;
so a layout may name what besides must be seen.

Not here: the layouts themselves (``layouts``), the kernel that shared rows use in 16 bits on CUDA
(``kernel_proof``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from counterpoint.engine.memory import is_out_of_memory
from counterpoint.errors import kind_and_line
from counterpoint.forward.gradient_proof import (
    NARROW,
    WIDE,
    largest_difference,
    left_as_it_was,
    sampled,
    sampled_gradient,
)
from counterpoint.forward.head import Head
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.model_seams import own_forward
from counterpoint.ranks import raised_between_ranks
from counterpoint.records import PairBatch, PairLogps

Gradient = Callable[[Tensor, nn.Module], Sequence[Tensor | None]]
"""A number with a graph and its model -> its gradient by each weight that trains."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference of a mean log-probability, relative where above 1 nat, by weights' dtype."""

NARROW_TOLERANCE = 5e-2
"""The same for weights in 16 bits, whose rounding alone makes a percent; a wrong mask makes ten."""


def layouts_disagree(
    model: nn.Module,
    head: Head,
    batch: PairBatch,
    reference: PairBatch,
    gradient: Gradient | None = None,
) -> str | None:
    """Compare two layouts of the same pairs, and prove the kernels that the first may use.

    Call it under the run's autocast: it turns it off, but the kernel runs in its dtype.

    Args:
        model: unwrapped, on the device of the batches.
        head: proved.
        batch: some pairs, at least two to see that they do not see each other.
        reference: the same pairs in the layout that is right.
        gradient: the engine's, for weights of which it holds a part; None: autograd's own.
            With it, memory that runs out is raised.

    Returns:
        None where they agree; else what was seen.
    """
    layout, device = LAYOUTS[batch.layout], batch.input_ids.device.type
    weights = next(parameter.dtype for parameter in model.parameters())
    running = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights
    try:
        with left_as_it_was(model), torch.enable_grad(), full_precision(model, device):
            with LAYOUTS[reference.layout].running(model):
                expected = _value_and_gradient(model, head, reference, gradient)
            with layout.running(model), layout.watched() as seen:
                found = _value_and_gradient(model, head, batch, gradient)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        # of one rank alone, while others wait for it: no word on the layout
        if gradient is not None and (is_out_of_memory(error) or raised_between_ranks(error)):
            raise
        return kind_and_line(error)
    differ = layout.unseen(model, seen) or _differ(model, expected, found, weights)
    if differ:
        return differ
    with layout.running(model):
        layout.prove_kernels(seen, batch, running)
    return None


def _value_and_gradient(
    model: nn.Module, head: Head, batch: PairBatch, gradient: Gradient | None
) -> tuple[PairLogps, list[Tensor]]:
    """Log-probabilities of some pairs, and a gradient in which each completion counts otherwise."""
    logps = pair_forward(model, head, batch).logps
    times = torch.arange(1, len(batch) + 1, device=logps.chosen.device)
    chosen, rejected = logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens
    total = (times * (chosen - 0.5 * rejected)).sum()
    if gradient is None:
        some = sampled_gradient(total, [w for w in model.parameters() if w.requires_grad])
    else:
        some = sampled(gradient(total, model))
    return replace(logps, chosen=logps.chosen.detach(), rejected=logps.rejected.detach()), some


def _differ(
    model: nn.Module,
    expected: tuple[PairLogps, list[Tensor]],
    found: tuple[PairLogps, list[Tensor]],
    weights: torch.dtype,
) -> str | None:
    """What differs by more than rounding: log-probabilities, or the gradient of a weight."""
    limit = TOLERANCE.get(weights, NARROW_TOLERANCE)
    apart = []
    for side in ("chosen", "rejected"):
        tokens = getattr(expected[0], f"{side}_tokens")
        one, other = getattr(expected[0], side) / tokens, getattr(found[0], side) / tokens
        apart.append((one - other).abs() / one.abs().clamp(min=1))
    worst = float(torch.cat(apart).max())  # torch's max is NaN where there is one; Python's is not
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
    with own_forward(model), torch.autocast(device, enabled=False):
        yield
