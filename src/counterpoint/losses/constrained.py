"""What a constraint measures on pairs: numerators and denominators, one a pair.

    value = sum over the step's pairs of numerators / sum of denominators

A denominator depends on the data alone, so that a step's is known before its first backward. The
step minimises f + sum of multiplier x value, multipliers held still; bounds are constants there and
change no gradient.

A kind's functions are named in its row (``constraints.KINDS``).

Not here: how multipliers move (``multiplier``), and sums over micro-batches and ranks
(``trainer``).
"""

from __future__ import annotations

from collections.abc import Callable
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
class Seen:
    """What a constraint is measured on: pairs, and what is known of them.

    Args:
        objective: of the run; says how log-probabilities are read.
        logps: what the model says of the pairs.
        terms: what the objective makes of it.
        batch: the pairs.
        initial: what the initial policy gave each chosen completion, in nats a token, for kinds
            that need references; None: what it has now.
    """

    objective: Objective
    logps: PairLogps
    terms: LossTerms
    batch: PairBatch
    initial: Float[Tensor, " pairs"] | None = None


@dataclass(frozen=True, slots=True)
class ConstraintMath:
    """How a kind of constraint is measured; every function gives one number a pair.

    Args:
        numerator: of the bounded value, with gradient; None: it is measured on no pairs.
        surrogate: what is minimised in its place where it has no useful gradient.
        denominator: of the bounded value, from the data alone, at least 0; None: 1 a pair.
        price: of a multiplier, a bound and pairs, what is taken off the pairs' margins.
    """

    numerator: Callable[[Constraint, Seen], Tensor] | None = None
    surrogate: Callable[[Constraint, Seen], Tensor] | None = None
    denominator: Callable[[Constraint, Objective, PairBatch], Tensor] | None = None
    price: Callable[[float, float, PairBatch], Tensor] | None = None


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


def constraint_math(constraint: Constraint) -> ConstraintMath:
    """The functions of a constraint's kind."""
    named = constraint.row.math
    found: ConstraintMath = globals()[named] if isinstance(named, str) else named
    return found


def measured(constraint: Constraint, seen: Seen) -> Measured:
    """Numerators of a constraint on the pairs of its set.

    Args:
        constraint: of a kind that is measured on pairs.
        seen: the pairs.

    Raises:
        ConfigError: CP103 for a function that does not give a number a pair.
    """
    math, weight = constraint_math(constraint), seen.batch.weight
    assert math.numerator is not None
    numbers = math.numerator(constraint, seen)
    weighted = weight * _a_number_a_pair(constraint, numbers, seen.batch)
    if math.surrogate is None:
        return Measured(weighted.detach(), weighted)
    instead = _a_number_a_pair(constraint, math.surrogate(constraint, seen), seen.batch)
    return Measured(weighted.detach(), weight * instead)


def belongs(constraint: Constraint, batch: PairBatch) -> bool:
    """Whether a constraint is measured on the set that a batch is of."""
    if constraint_math(constraint).numerator is None:
        return False
    return batch.of == (constraint.name if constraint.row.own_set else "")


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
    denominator = constraint_math(constraint).denominator
    if denominator is None:
        return batch.weight
    numbers = denominator(constraint, objective, batch)
    return batch.weight * _a_number_a_pair(constraint, numbers, batch)


def price(
    constraint: Constraint, multiplier: float, bound: float, batch: PairBatch
) -> Float[Tensor, " pairs"] | None:
    """What a constraint takes off each pair's margin; None where it is a term beside the loss.

    Args:
        constraint: of any kind.
        multiplier: of the running step, at least 0.
        bound: that it holds.
        batch: the pairs.
    """
    found = constraint_math(constraint).price
    return None if found is None else found(multiplier, bound, batch)


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


# ---- the kinds ----


def _chosen_tokens(asked: Constraint, objective: Objective, batch: PairBatch) -> Tensor:
    per_token = objective.nll_reduction == "token_mean"
    return batch.chosen_tokens if per_token else torch.ones_like(batch.weight)


def _lost(asked: Constraint, seen: Seen) -> Tensor:
    now = seen.logps.chosen / seen.logps.chosen_tokens
    return torch.relu((now.detach() if seen.initial is None else seen.initial) - now)


def _short_of_margin(asked: Constraint, seen: Seen) -> Tensor:
    chosen, rejected = seen.objective.scores(seen.logps)
    return torch.relu(asked.margin - (chosen - rejected))


def _wrong(asked: Constraint, seen: Seen) -> Tensor:
    chosen, rejected = seen.objective.scores(seen.logps)
    return rejected >= chosen


def _logistic(asked: Constraint, seen: Seen) -> Tensor:
    # a share of pairs has no gradient; the logistic loss bounds it, over log 2
    chosen, rejected = seen.objective.scores(seen.logps)
    return sigmoid_loss(seen.objective.beta * (chosen - rejected))


def _drift(asked: Constraint, seen: Seen) -> Tensor:
    logps = seen.logps
    return torch.zeros_like(logps.chosen) if logps.drift is None else logps.drift


def _all_tokens(asked: Constraint, objective: Objective, batch: PairBatch) -> Tensor:
    counts: Tensor = batch.target_counts.view(-1, len(batch))[:2].sum(0)
    return counts


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
    chosen, rejected = batch.target_counts.view(-1, len(batch))[:2].to(batch.margin)
    longer: Tensor = chosen - rejected
    return multiplier * longer / bound


def _own_numerator(asked: Constraint, seen: Seen) -> Tensor:
    assert asked.numerator is not None
    numbers: Tensor = asked.numerator(seen.logps, seen.batch)
    return numbers


def _own_denominator(asked: Constraint, objective: Objective, batch: PairBatch) -> Tensor:
    if asked.denominator is None:
        return torch.ones_like(batch.weight)
    numbers: Tensor = asked.denominator(batch)
    return numbers


NLL = ConstraintMath(lambda asked, seen: -seen.logps.chosen, denominator=_chosen_tokens)
LOST = ConstraintMath(_lost)
SHORT_OF_MARGIN = ConstraintMath(_short_of_margin)
WRONG_WAY_ROUND = ConstraintMath(_wrong, _logistic)
DRIFT = ConstraintMath(_drift, denominator=_all_tokens)
LENGTH = ConstraintMath(price=length_margin)
OWN_FUNCTIONS = ConstraintMath(_own_numerator, denominator=_own_denominator)
