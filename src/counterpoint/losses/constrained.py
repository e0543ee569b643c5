"""What a constraint measures on pairs: numerators and denominators, one a pair.

    value = sum over the step's pairs of numerators / sum of denominators

A denominator depends on the data alone, so that a step's is known before its first backward. The
step minimises f + sum of multiplier x value, multipliers held still; bounds are constants there and
change no gradient.

Not here: how multipliers move (``multiplier``), sums over micro-batches and ranks (``trainer``),
and kinds that need more than the log-probabilities of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.constraints import Constraint
from counterpoint.errors import ConfigError
from counterpoint.losses.objective import Objective
from counterpoint.losses.preference import sigmoid_loss
from counterpoint.records import LossTerms, PairBatch, PairLogps


@dataclass(frozen=True, slots=True)
class Measured:
    """What a constraint makes of a micro-batch's pairs, weighted by their weights.

    Args:
        numerator: of the bounded value, detached.
        surrogate: what is minimised in its place where the value has no useful gradient; else the
            numerator, with gradient.
    """

    numerator: Float[Tensor, " pairs"]
    surrogate: Float[Tensor, " pairs"]


def measured(
    constraint: Constraint,
    objective: Objective,
    logps: PairLogps,
    terms: LossTerms,
    batch: PairBatch,
    initial: Float[Tensor, " pairs"] | None = None,
) -> Measured:
    """Numerators of a constraint on the pairs of its set.

    Args:
        constraint: of any kind but length, which is measured on none.
        objective: of the run; says how log-probabilities are read.
        logps: what the model says of the pairs.
        terms: what the objective makes of it.
        batch: the pairs.
        initial: for displacement, what the initial policy gave each chosen completion, in nats a
            token; None: what it has now.

    Raises:
        ConfigError: CP103 for a custom function that does not give a number a pair.
    """
    if constraint.kind == "bc":
        numbers = terms.nll
    elif constraint.kind == "displacement":
        now = logps.chosen / logps.chosen_tokens
        numbers = torch.relu((now.detach() if initial is None else initial) - now)
    elif constraint.kind == "absolute_preference":
        chosen, rejected = objective.scores(logps)
        numbers = torch.relu(constraint.margin - (chosen - rejected))
    elif constraint.kind == "safety":
        chosen, rejected = objective.scores(logps)
        # a share of pairs has no gradient; the logistic loss bounds it, over log 2
        wrong = batch.weight * (rejected >= chosen).to(batch.weight)
        return Measured(wrong, batch.weight * sigmoid_loss(objective.beta * (chosen - rejected)))
    elif constraint.kind == "kl_drift":
        numbers = torch.zeros_like(logps.chosen) if logps.drift is None else logps.drift
    else:
        assert constraint.numerator is not None
        numbers = _a_number_a_pair(constraint, constraint.numerator(logps, batch), batch)
    weighted = batch.weight * numbers
    return Measured(weighted.detach(), weighted)


def belongs(constraint: Constraint, batch: PairBatch) -> bool:
    """Whether a constraint is measured on the set that a batch is of; length is on none."""
    if constraint.kind == "length":
        return False
    return batch.of == (constraint.name if constraint.kind == "safety" else "")


def length_margin(multiplier: float, bound: float, batch: PairBatch) -> Float[Tensor, " pairs"]:
    """What a bound on the length of what the model writes takes off each pair's margin.

    A reward with a price on length, r - multiplier x |y| / bound, is won by the policy whose
    implicit reward is larger by that price: the gap between two completions grows by
    multiplier x (|chosen| - |rejected|) / bound, so that longer chosen completions are asked
    for less (R-DPO, arXiv:2403.19159, with its alpha in units of the bound).

    Args:
        multiplier: in nats of scaled reward a bound's length, at least 0.
        bound: in tokens, above 0.
        batch: the pairs.

    Returns:
        Nats of scaled reward; below 0 where chosen is the shorter.
    """
    chosen, rejected = batch.target_counts.view(2, -1).to(batch.margin)
    longer: Tensor = chosen - rejected
    return multiplier * longer / bound


def denominators(
    constraint: Constraint, objective: Objective, batch: PairBatch
) -> Float[Tensor, " pairs"]:
    """Denominators of the same, weighted by the pairs' weights.

    Args:
        constraint: as for ``measured``.
        objective: of the run.
        batch: the pairs.

    Raises:
        ConfigError: as ``measured``.
    """
    if constraint.kind == "bc" and objective.nll_reduction == "token_mean":
        return batch.weight * batch.chosen_tokens
    if constraint.kind == "kl_drift":
        return batch.weight * batch.target_counts.view(2, -1).sum(0)
    if constraint.denominator is None:
        return batch.weight
    return batch.weight * _a_number_a_pair(constraint, constraint.denominator(batch), batch)


def _a_number_a_pair(constraint: Constraint, numbers: Any, batch: PairBatch) -> Tensor:
    if not isinstance(numbers, Tensor) or numbers.shape != (len(batch),):
        shape = getattr(numbers, "shape", None)
        raise ConfigError(
            "CP103",
            f"constraint {constraint.name}: its function gave {type(numbers).__name__} "
            f"of shape {shape} for {len(batch)} pairs; it "
            "should give a tensor of one number a pair.",
        )
    return numbers.to(batch.weight)
