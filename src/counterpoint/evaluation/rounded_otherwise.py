"""What a model says if its numbers of 16 bits are rounded otherwise.

Two ways to one number (alone or in a padded batch, with or without a cache) differ by rounding, in
bfloat16 by percents of a probability where a model is sure. How much that is depends on its depth
and on how sharp its words are, so it is measured: every module's numbers of 16 bits are moved by up
to a unit of their last place, which is how far two roundings of one number may lie apart. Of
several such texts it is asked whether those of two ways lie further apart than those of one.

Not here: what is written and compared (``generation``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.tensor_parts import device_of_products

SEEN = 1e-3
"""Probability, or nats, from which on a difference counts: below it nobody reads another text."""

ROUNDINGS = 3
"""Other roundings that are tried."""

SPREAD = 2.0
"""How many times as far as the furthest of them a number may lie and be rounding."""

TWO_KINDS = 1.6
"""How many times as far as texts of one way lie apart those of two ways lie, if the ways differ.

It is 1 on average where only rounding differs, and 1.0 to 1.3 of 3 roundings of small models. Those
that see padding have 1.8 and more."""

Said = tuple[Tensor, Tensor]
"""Tokens that were written, and the probabilities of every token at each of them."""


def is_coarse(computed_in: torch.dtype | None) -> bool:
    """Whether rounding alone is seen in what a model says.

    Args:
        computed_in: the precision of its products; None where it is not known.
    """
    return computed_in is not None and torch.finfo(computed_in).bits < 32


@contextmanager
def rounded_otherwise(model: nn.Module, seed: int) -> Iterator[None]:
    """Within it what each innermost module of a model says in 16 bits is rounded otherwise.

    Args:
        model: any.
        seed: which of the other roundings; the same on each rank.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not is_coarse(value.dtype):
            return value
        if value.device not in generators:
            generators[value.device] = torch.Generator(value.device).manual_seed(seed)
        shift = (
            torch.rand(value.shape, generator=generators[value.device], device=value.device)
            .mul_(2)
            .sub_(1)
        )
        # the sum is rounded as any other
        return (value.float() * (1 + torch.finfo(value.dtype).eps * shift)).to(value.dtype)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(map(moved, output))
        return moved(output)

    with ExitStack() as stack:
        for module in model.modules():
            if not any(True for _ in module.children()):
                handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


def differs_by_itself(differences: Sequence[float], precision: torch.dtype | None) -> bool | None:
    """Whether differences that should be none are some; None where rounding may explain them.

    Args:
        differences: of a model, at the precision that it computes in.
        precision: of its products; None where it is not known.
    """
    if all(one <= SEEN for one in differences):
        return False
    if not is_coarse(precision) or not all(map(math.isfinite, differences)):
        return True
    return None


def are_two_kinds(one: Sequence[Sequence[Said]], other: Sequence[Sequence[Said]]) -> bool:
    """Whether texts written in two ways are unlike, beyond what roundings of each way are.

    Args:
        one: what one way wrote to each prompt, for each of several roundings.
        other: the same of the other way.
    """
    count = len(one)
    across = [
        probability_apart(a, b) for x in one for y in other for a, b in zip(x, y, strict=True)
    ]
    within = [
        probability_apart(a, b)
        for way in (one, other)
        for n in range(count)
        for m in range(n)
        for a, b in zip(way[n], way[m], strict=True)
    ]
    mean_within = sum(within) / len(within)
    return not sum(across) / len(across) <= TWO_KINDS * mean_within  # NaN is a difference


def is_beyond_rounding(
    differences: Sequence[float],
    by_rounding: Callable[[], list[float]],
    model: nn.Module,
    precision: torch.dtype | None,
) -> bool:
    """Whether differences that should be none are more than rounding makes.

    Args:
        differences: of a model, at the precision that it computes in.
        by_rounding: makes those that another rounding makes of the same; called while the model
            rounds otherwise.
        model: whose they are.
        precision: of its products; None where it is not known.
    """
    differs = differs_by_itself(differences, precision)
    if differs is not None:
        return differs
    found: list[float] = []
    for seed in range(ROUNDINGS):
        with rounded_otherwise(model, seed):
            found += by_rounding()
    return max(differences) > SPREAD * max(filter(math.isfinite, found), default=0.0)


def probability_apart(one: Said, other: Said) -> float:
    """Probability that a token drawn from one would not have been drawn from the other, at most.

    Args:
        one: what was written.
        other: the same, written otherwise.
    """
    (ids, own), (other_ids, others) = one, other
    steps = min(len(own), len(others))
    # where the tokens part, what follows them is no longer comparable
    same = (ids[:steps] == other_ids[:steps]).int().cumprod(dim=0)
    steps = min(steps, int(same.sum()) + 1)
    return float((own[:steps] - others[:steps]).abs().sum(dim=1).max() / 2)


def computed_in(model: torch.nn.Module) -> torch.dtype:
    """The precision that a model computes in: autocast's where it is on, else its weights'."""
    weight = next(model.parameters())  # of a tied head too
    kind = device_of_products(model).type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
