"""A plan as people read it, in 80 columns.

Not here: what is in it (``prediction``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from counterpoint.planner.machine import show_bytes
from counterpoint.planner.prediction import ROWS, Estimate, Plan, Split
from counterpoint.planner.scaling import Scaling

WIDTH = 80
_MARGIN = 10
MOST_SPLITS = 12
"""Splits that are shown; the smallest micro-batches are left out first, but for the last."""


def as_table(plan: Plan) -> str:
    """The plan as text of several lines, none wider than ``WIDTH``."""
    lines = [*_run(plan), "", *_memory(plan), "", *_advice(plan)]
    if plan.splits:
        lines += ["", *_splits(plan)]
    if plan.scaling is not None:
        lines += ["", *_scaling(plan.scaling)]
    return "\n".join(lines)


def _run(plan: Plan) -> Iterator[str]:
    trained = "all" if plan.trained == plan.parameters else f"{plan.trained:,}"
    yield from _fold("model", f"{plan.parameters:,} weights, {trained} trained; {plan.precision}")
    why = f" ({plan.reason})" if plan.reason else ""
    again = "on" if plan.checkpointing else "off"
    if plan.checkpointing and plan.share < 1:
        again = f"of {plan.share:.0%} of the layers"
    yield from _fold("layout", f"{plan.layout}{why}; activation checkpointing {again}")
    lengths = ", ".join(f"{name} {tokens:,}" for name, tokens in plan.lengths.items())
    yield from _fold("lengths", f"tokens of a pair, its prompt once, at most: {lengths}")
    yield from _fold("step", f"{plan.pairs:,} pairs")
    yield from _fold(
        "memory", f"{show_bytes(plan.memory)}, of which {show_bytes(plan.usable)} are planned with"
    )


def _memory(plan: Plan) -> Iterator[str]:
    asked, longest = plan.asked, plan.longest
    yield f"{'at the worst moment of a step':32}{'as configured':>24}{'longest pair alone':>24}"
    yield f"{'  micro-batch':32}{_batch(asked):>24}{_batch(longest):>24}"
    if asked.patches or longest.patches:
        patches = (f"{one.patches:,}" for one in (asked, longest))
        yield f"  {'of these, patches of pictures':30}" + "".join(f"{n:>24}" for n in patches)
    for name, title in ROWS:
        values = [getattr(estimate, name) for estimate in (asked, longest)]
        if any(values):
            yield f"  {title:30}{show_bytes(values[0]):>24}{show_bytes(values[1]):>24}"
    if asked.host or longest.host:
        values = [estimate.host for estimate in (asked, longest)]
        yield f"  {'(in the host, beside it)':30}" + "".join(f"{show_bytes(n):>24}" for n in values)
    yield f"  {'peak':30}{_verdict(asked):>24}{_verdict(longest):>24}"


def _batch(estimate: Estimate) -> str:
    pairs = f"{estimate.pairs:,} pair{'' if estimate.pairs == 1 else 's'}"
    return f"{pairs}, {estimate.tokens:,} tok"


def _verdict(estimate: Estimate | Split) -> str:
    return f"{show_bytes(estimate.peak)} {'fits' if estimate.fits else 'TOO MUCH'}"


def _advice(plan: Plan) -> Iterator[str]:
    if plan.budget >= plan.whole:
        yield "a step fits whole: no micro-batch need be smaller."
    elif plan.budget:
        yield f"a micro-batch may hold {plan.budget:,} tokens, of a step's {plan.whole:,} at most:"
        yield f"  max_micro_batch_tokens: {plan.budget}"
    if not plan.remedies:
        yield "it fits as it is configured."
        return
    if plan.budget:
        yield "as configured it does not fit; with that line it does, and the step is the same."
        return
    yield "not even one pair fits. What helps, the cheapest first, each on top of the last:"
    for remedy in plan.remedies:
        yield f"  {remedy.line}"
        verdict = f"up to {remedy.budget:,} tokens fit" if remedy.fits else "still too much"
        yield f"    {remedy.cost}"
        yield f"    the longest pair needs {show_bytes(remedy.peak)}: {verdict}"
    if not plan.remedies[-1].fits:
        yield "Beyond that: a smaller model, or more memory."


def _splits(plan: Plan) -> Iterator[str]:
    yield f"ways to {plan.pairs:,} pairs a step, which all make the same step:"
    yield f"  {'a device':>9}{'accumulated':>13}{'ranks':>7}{'most tokens':>13}{'peak':>22}"
    shown = plan.splits
    if len(shown) > MOST_SPLITS:
        shown = (*shown[: MOST_SPLITS - 1], shown[-1])
    for one in shown:
        counts = f"{one.per_device:>9,}{one.accumulation:>13,}{one.ranks:>7,}{one.tokens:>13,}"
        yield f"  {counts}{_verdict(one):>22}"


def _scaling(scaling: Scaling) -> Iterator[str]:
    cluster, traffic = scaling.cluster, scaling.traffic
    copies = "one copy" if cluster.replicas == 1 else f"{cluster.replicas} copies"
    yield from _fold(
        "shards",
        f"{copies} of the model, each over {cluster.shards:,} of {cluster.ranks:,} ranks on "
        f"{cluster.nodes:,} nodes; the largest layer is {show_bytes(scaling.layer)} whole",
    )
    yield from _fold(
        "exchange",
        f"a device receives {show_bytes(traffic.total)} a micro-batch: weights "
        f"{show_bytes(traffic.gathered)}, gradients {show_bytes(traffic.scattered)}"
        + (f", between copies {show_bytes(traffic.copied)}" if traffic.copied else "")
        + f"; {traffic.outside / max(1, traffic.total):.0%} of it is hidden by nothing",
    )
    yield from _fold(
        "assumed",
        f"{cluster.intra / 1e9:g} GB/s in a node, {cluster.inter / 1e9:g} between nodes, "
        f"{cluster.peak / 1e12:g} TFLOP/s, of which products reach {cluster.efficiency:.0%}",
    )
    yield f"  {'micro-batch':18}{'tokens':>10}{'computing':>13}{'exchanging':>13}{'of peak':>10}"
    for pace in scaling.paces:
        times = f"{pace.computing:>11,.3g} s{pace.exchanging:>11,.3g} s"
        yield f"  {pace.what:18}{pace.tokens:>10,}{times}{pace.mfu:>10.1%}"
    yield "below the break-even ranks wait for the network; predicted, not measured."


def _fold(title: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{title:{_MARGIN}}",
        subsequent_indent=" " * _MARGIN,
        break_on_hyphens=False,
    )
