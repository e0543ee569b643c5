"""The proof that a layout is right: it agrees with padded rows on the first pairs of a run.

A faster layout changes nothing, where a model allows it. What is known to forbid it says the
layout itself; for the rest, it is compared with the padded one in value and gradient, without
autocast, and given up where they disagree. A gradient that is disputed is asked for once more in
float64, where rounding hardly ever decides on which side of a kink an activation lies. Those pairs
may be shorter than a window of attention; so a layout may name what besides must be seen.

Not here: the layouts themselves (``layouts``), the kernel that shared rows use in 16 bits on CUDA
(``kernel_proof``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.engine.memory import is_out_of_memory
from counterpoint.errors import kind_and_line
from counterpoint.forward.gradient_proof import (
    NARROW,
    WIDE,
    left_as_it_was,
    relative_differences,
    sampled,
    sampled_gradient,
)
from counterpoint.forward.head import Head
from counterpoint.forward.in_double import fits_in_double, in_double
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
    compare = partial(_compare, model, head, batch, reference)
    try:
        seen, differ, disputed = compare(gradient)
        if disputed and gradient is None and fits_in_double(model):
            # where rounding decides on the side of a kink, as of a ReLU, both gradients are right;
            # float64 seldom leaves it to rounding, and a layout that is wrong is wrong there too
            with in_double(model):
                _, differ, disputed = compare(None, disputed)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        # of one rank alone, while others wait for it: no word on the layout
        if gradient is not None and (is_out_of_memory(error) or raised_between_ranks(error)):
            raise
        return kind_and_line(error)
    if differ or disputed:
        return differ or _worst_of(disputed, _gradient_limit(weights))
    with layout.running(model):
        layout.prove_kernels(seen, batch, running)
    return None


def _compare(
    model: nn.Module,
    head: Head,
    batch: PairBatch,
    reference: PairBatch,
    gradient: Gradient | None,
    among: Collection[str] | None = None,
) -> tuple[Set[Any], str | None, dict[str, float]]:
    """Both layouts once.

    Args:
        model: as for ``layouts_disagree``, and so the next three.
        head: proved.
        batch: some pairs.
        reference: the same.
        gradient: the engine's, or None.
        among: names of the weights whose gradients are compared; None: of all that train.

    Returns:
        What the layout has seen; what differs beside gradients, in words, or None; and by how much
        the gradient of a weight does, by its name, where that is more than rounding.
    """
    layout, device = LAYOUTS[batch.layout], batch.input_ids.device.type
    value = partial(_value_and_gradient, model, head, gradient, among)
    with left_as_it_was(model), torch.enable_grad(), full_precision(model, device):
        with LAYOUTS[reference.layout].running(model):
            expected, truth = value(reference)
        with layout.running(model), layout.watched() as seen:
            found, other = value(batch)
    weights = next(parameter.dtype for parameter in model.parameters())
    differ = layout.unseen(model, seen) or _differing_logps(expected, found, weights)
    if differ:
        return seen, differ, {}
    differences = relative_differences(list(truth.values()), list(other.values()))
    apart = dict(zip(truth, differences, strict=True))
    limit = _gradient_limit(weights)
    # a comparison with NaN is false, hence the negation
    return seen, None, {name: one for name, one in apart.items() if not one <= limit}


def _value_and_gradient(
    model: nn.Module,
    head: Head,
    gradient: Gradient | None,
    among: Collection[str] | None,
    batch: PairBatch,
) -> tuple[PairLogps, dict[str, Tensor]]:
    """Log-probabilities of some pairs, and a gradient in which each completion counts otherwise."""
    logps = pair_forward(model, head, batch).logps
    times = torch.arange(1, len(batch) + 1, device=logps.chosen.device)
    chosen, rejected = logps.chosen / logps.chosen_tokens, logps.rejected / logps.rejected_tokens
    total = (times * (chosen - 0.5 * rejected)).sum()
    known = replace(logps, chosen=logps.chosen.detach(), rejected=logps.rejected.detach())
    if gradient is not None:
        some = sampled(gradient(total, model))
        # named afterwards: a tied weight has two names while an engine has gathered one of them
        return known, dict(zip(_trained(model), some, strict=True))
    weights = {
        name: weight for name, weight in _trained(model).items() if among is None or name in among
    }
    some = sampled_gradient(total, list(weights.values()))
    return known, dict(zip(weights, some, strict=True))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _differing_logps(expected: PairLogps, found: PairLogps, weights: torch.dtype) -> str | None:
    """By how much log-probabilities differ, where that is more than rounding."""
    limit = TOLERANCE.get(weights, NARROW_TOLERANCE)
    apart = []
    for side in ("chosen", "rejected"):
        tokens = getattr(expected, f"{side}_tokens")
        one, other = getattr(expected, side) / tokens, getattr(found, side) / tokens
        apart.append((one - other).abs() / one.abs().clamp(min=1))
    worst = float(torch.cat(apart).max())  # torch's max is NaN where there is one; Python's is not
    if worst <= limit:
        return None
    return f"log-probabilities differ by {worst:.1e} where {limit:.0e} is rounding"


def _gradient_limit(weights: torch.dtype) -> float:
    return WIDE if weights in TOLERANCE else NARROW


def _worst_of(disputed: Mapping[str, float], limit: float) -> str:
    # NaN first: of all of them nothing is known then
    name = max(disputed, key=lambda one: (math.isnan(disputed[one]), disputed[one]))
    return f"the gradient of {name} differs by {disputed[name]:.1e} where {limit:.0e} is rounding"


@contextmanager
def full_precision(model: nn.Module, device: str) -> Iterator[None]:
    """Without autocast, also where accelerate has put it into the model's own forward.

    Args:
        model: unwrapped from distributed training.
        device: kind of device.
    """
    with own_forward(model), torch.autocast(device, enabled=False):
        yield
