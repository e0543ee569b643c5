"""Checks of log lines and evaluations: what is remembered of them in, an alarm or nothing out.

Each check holds for the moment of the last line; that an alarm is raised once an episode is seen
to by ``watch``. Log-probabilities are taken a token (``nll_loss``), as sums over completions
depend on how long those of a step happen to be.

Not here: samples (``of_samples``), and parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from counterpoint.alarms.curve import LEAST, Curve, gaussian, noise, sure
from counterpoint.alarms.remedies import Facts, clip, halve_the_rate, hold_the_chosen
from counterpoint.runlog import Alarm

FALL = 1.0
"""Nats a token by which the chosen completions may become less likely.

At one nat each of their tokens is e times less likely than it was. Losses without an NLL term
lower the chosen's likelihood by some tenths of a nat in runs that end well, and a collapse takes
it by several; chance is excluded apart from this.
"""

NEAR = 9
"""Lines before one whose median is its usual value: few, so that no drift lies between them."""

LOSS_SPIKE, NORM_SPIKE = 2.0, 10.0
"""Factors over the usual value from which a line is a spike, however quiet the curve was.

Norms of small steps differ by factors of a few as single pairs are won and lost, and clipping at
1, the default, takes that away.
"""

POOLED = 20
"""Last lines of which an accuracy is taken: few, so that a turn of it shows."""

RISING = 2.0
"""Standard deviations by which an accuracy that improves is above where it began."""


@dataclass(frozen=True, slots=True)
class PooledShare:
    """How often chosen was preferred, over some pairs.

    Args:
        step: of the last of them.
        preferred: pairs in which chosen had the higher reward.
        pairs: all of them, at least 1.
    """

    step: int
    preferred: float
    pairs: int


def pooled(parts: Sequence[PooledShare]) -> PooledShare:
    """Several shares as one."""
    preferred, pairs = (sum(getattr(p, name) for p in parts) for name in ("preferred", "pairs"))
    return PooledShare(parts[-1].step, preferred, pairs)


def from_chance(share: PooledShare) -> float:
    """How far a share is from one half, in standard deviations of a tossed coin; below: < 0."""
    return (2 * share.preferred - share.pairs) / math.sqrt(share.pairs)


def displacement(nll: Curve, margin: Curve, facts: Facts, step: int) -> Alarm | None:
    """CW421 or CW422: the chosen completions have become much less likely than they were.

    Args:
        nll: nats a token of the chosen completions.
        margin: of the rewards.
        facts: of the run.
        step: of the last line.

    Returns:
        Where they are a nat a token (``FALL``) below their start, and not by chance: CW421 if
        the margin rises, CW422 if it does not.
    """
    if nll.level - nll.start < FALL or not nll.has_risen:
        return None
    fell = f"the chosen completions fell from {-nll.start:.3g} to {-nll.level:.3g} nats a token"
    if margin.has_risen:
        rose = f"while the margin rose from {margin.start:.3g} to {margin.level:.3g}"
        return Alarm("CW421", step, nll.low_until, f"{fell}, {rose}.", hold_the_chosen(facts))
    still = f"and the margin, {margin.start:.3g} at first, is {margin.level:.3g}"
    return Alarm("CW422", step, nll.low_until, f"{fell}, {still}.", halve_the_rate(facts))


def lost_margin(margin: Curve, facts: Facts, step: int) -> Alarm | None:
    """CW423: of what the margin had gained, half or more is gone, and not by chance.

    A margin that has been learnt wavers by a small part of itself; a collapse goes through the
    half of it on its way.

    Args:
        margin: of the rewards.
        facts: of the run.
        step: of the last line.
    """
    gain, loss = margin.peak - margin.start, margin.peak - margin.level
    if min(gain, loss) <= margin.chance or loss < gain / 2:
        return None
    seen = f"the margin rose from {margin.start:.3g} to {margin.peak:.3g} and is {margin.level:.3g}"
    return Alarm("CW423", step, margin.peak_step, f"{seen}.", halve_the_rate(facts))


def below_chance(
    start: PooledShare, recent: Sequence[PooledShare], look: int, step: int
) -> Alarm | None:
    """CW424: rejected is preferred more often than a coin would have it, and it gets no better.

    The bound is the coin's own (``from_chance``), at the hundredth look 0.41 for 640 pairs. A model
    may well begin below chance, where the better completion is the longer or the rarer one; it
    is given ``POOLED`` lines, and while it rises from there nothing is wrong.

    Args:
        start: of the first lines.
        recent: the last lines, none of the warm-up.
        look: number of the line.
        step: of the last line.
    """
    if len(recent) < POOLED:
        return None
    now = pooled(recent)
    rate, first = now.preferred / now.pairs, start.preferred / start.pairs
    both = (now.preferred + start.preferred) / (now.pairs + start.pairs)
    chance = math.sqrt(both * (1 - both) * (1 / now.pairs + 1 / start.pairs))
    if from_chance(now) > -gaussian(look) or rate - first > RISING * chance:
        return None
    seen = f"chosen was preferred in {rate:.1%} of the last {now.pairs:,} pairs, {first:.1%} of"
    return Alarm("CW424", step, recent[0].step, f"{seen} the first {start.pairs:,}.")


def spike(curve: Curve, value: float, least: float) -> float | None:
    """How many times the usual value the next line is, if that is no chance.

    Values are compared as logarithms, in which losses and norms of few pairs are spread evenly. A
    spike must also be above every level that the run has had: once nearly all pairs are won, a
    single hard one is many times almost nothing, and no harm.

    Args:
        curve: the lines before, of a metric that is not negative.
        value: the next line.
        least: factor over the usual value from which it may be one.

    Returns:
        None for a usual value.
    """
    logs = [math.log(before) for before in curve.last if before > 0]
    if len(logs) < LEAST or value <= max(0.0, curve.peak):
        return None
    above = math.log(value) - median(logs[-NEAR:])
    chance = sure(len(logs), curve.count) * noise(logs)
    return math.exp(above) if above > max(math.log(least), chance) else None


def loss_spike(loss: Curve, value: float, facts: Facts, step: int) -> Alarm | None:
    """CW425: a loss far above the lines before; see ``spike``.

    Args:
        loss: the lines before.
        value: of the line of this step.
        facts: of the run.
        step: of the line.
    """
    times = spike(loss, value, LOSS_SPIKE)
    if times is None:
        return None
    seen = f"a loss of {value:.3g}, {times:.3g} times that of the lines before."
    return Alarm("CW425", step, step, seen, halve_the_rate(facts))


def gradient_spike(norm: Curve, value: float, facts: Facts, step: int) -> Alarm | None:
    """CW426: a gradient far longer than in the lines before; see ``spike``.

    Args:
        norm: the lines before.
        value: of the line of this step.
        facts: of the run.
        step: of the line.
    """
    times = spike(norm, value, NORM_SPIKE)
    if times is None:
        return None
    seen = f"a gradient of norm {value:.3g}, {times:.3g} times that of the lines before."
    return Alarm("CW426", step, step, seen, clip(facts, value / times))


def disagreement(
    train: Sequence[PooledShare], held_out: Sequence[PooledShare], name: str
) -> Alarm | None:
    """CW427: training prefers what it calls chosen, and an evaluation set says the opposite.

    Both are judged against a coin (``from_chance``). A model that has learnt its pairs by heart
    is at chance elsewhere, not below it; below are labels that contradict each other.

    Args:
        train: the last lines.
        held_out: every evaluation of the set so far, the latest last.
        name: of the set, "eval" if it is the only one.
    """
    if not train:
        return None
    now, seen = held_out[-1], pooled(train)
    if min(from_chance(seen), -from_chance(now)) < gaussian(len(held_out)):
        return None
    best = max(held_out, key=lambda share: share.preferred / share.pairs)
    return Alarm(
        "CW427",
        now.step,
        best.step,
        f"chosen is preferred in {seen.preferred / seen.pairs:.1%} of the last {seen.pairs:,} "
        f"training pairs and {now.preferred / now.pairs:.1%} of the {now.pairs:,} of {name}.",
    )


def divergence(loss: Curve, facts: Facts, step: int) -> Alarm | None:
    """CW428: the loss itself is above where it began, and not by chance.

    Nothing that training asks for raises its own objective, so that no size is asked of the
    rise; but a loss with multipliers rises with them.

    Args:
        loss: of the training lines.
        facts: of the run.
        step: of the last line.
    """
    if facts.constrained or not loss.has_risen:
        return None
    seen = f"the loss, {loss.start:.3g} in the first lines, is {loss.level:.3g}."
    return Alarm("CW428", step, loss.low_until, seen, halve_the_rate(facts))


def held_out_nll(nll: Sequence[tuple[int, float]], name: str, facts: Facts) -> Alarm | None:
    """CW422 for an evaluation set: its chosen completions are a nat a token below their start.

    The set is the same each time, so that nothing has to be left to chance.

    Args:
        nll: step and nats a token of every evaluation so far.
        name: of the set.
        facts: of the run.
    """
    (first, start), (step, now) = nll[0], nll[-1]
    if now - start < FALL:
        return None
    since = max((at for at, value in nll if value <= start), default=first)
    seen = f"the chosen completions of {name} fell from {-start:.3g} to {-now:.3g} nats a token."
    return Alarm("CW422", step, since, seen, hold_the_chosen(facts))
