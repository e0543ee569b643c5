"""The initial policy, measured before the first step: what relative bounds are a share of.

    evenly spread training pairs ──▶ value of each constraint
    all pairs, if a constraint asks ──▶ nats a token of each chosen completion

Both are kept in every checkpoint: a resumed run has other weights by then.

Not here: what is made of the values (``constraint_set``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import ranks
from counterpoint.console.phases import phase
from counterpoint.data.batching import KeyedPairs
from counterpoint.data.pair_digest import PairDigest
from counterpoint.errors import ConfigError
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.records import PairBatch, TokenPair, exact_dtype
from counterpoint.step.runner import StepRunner

ToPair = Callable[[Mapping[str, Any]], TokenPair]
"""From a prepared row to a pair."""


def calibrate(
    runner: StepRunner,
    size: int,
    few: Sequence[TokenPair],
    sets: Mapping[str, Any],
    to_pair: ToPair,
) -> None:
    """Measure the model as it is, and tell the constraints.

    Args:
        runner: of the run, before its first step.
        size: pairs that are run at a time.
        few: the calibration slice; the same on every rank.
        sets: all prepared sets by name, the training set as "train".
        to_pair: makes a pair of one of their rows.

    Raises:
        ConfigError: CP104 for a constraint that must know all rows of a streamed set.
    """
    constraints = runner.constraints
    comparing = [one.asked.kind for one in constraints.all if one.asked.row.needs_references]
    if comparing:
        _refuse_streams(comparing[0], sets)
        for name, pairs in sets.items():
            keyed = KeyedPairs(pairs, to_pair)
            constraints.references[name] = _chosen_token_logps(runner, size, keyed)
    sums = sums_of(runner, size, few)
    constraints.calibrate(sums, pairs=len(few), digest=_digest(few))


def sums_of(
    runner: StepRunner, size: int, pairs: Sequence[TokenPair]
) -> Float[Tensor, "2 constraints"]:
    """Numerators, then denominators, of every constraint on some pairs, over all ranks.

    Args:
        runner: of the run.
        size: pairs that are run at a time.
        pairs: of any of its sets; the same on every rank.
    """
    constraints, device = runner.constraints, runner.device
    sums = torch.zeros(2, len(constraints.all), dtype=exact_dtype(device), device=device)
    windows = (pairs[at : at + size] for at in range(0, len(pairs), size))
    for output, batch in _measured(runner, size, windows, len(pairs)):
        terms = constraints.objective(output.logps, batch.margin)
        sums[0] += constraints.numerators(output.logps, terms, batch)[0]
        sums[1] += constraints.denominators(batch)
    return ranks.add_up(sums)


def _measured(
    runner: StepRunner, size: int, windows: Iterable[Sequence[TokenPair]], pairs: int
) -> Iterator[tuple[PairOutput, PairBatch]]:
    """This rank's part of some windows, which are the same on every rank."""
    every = iter(windows)
    with phase("measuring the constraints", pairs, "pairs") as now:
        # a window for each rank, or none of the last ones: ranks may meet in every pass
        while turn := list(islice(every, ranks.count())):
            mine = turn[ranks.rank()] if ranks.rank() < len(turn) else []
            yield from runner.measured(list(mine), size)
            now.advance(sum(map(len, turn)))


def _refuse_streams(kind: str, sets: Mapping[str, Any]) -> None:
    for name, pairs in sets.items():
        if not hasattr(pairs, "__len__"):
            raise ConfigError(
                "CP104",
                f"a {kind} constraint compares each row with the initial policy, which cannot see "
                f"the streamed set {name} before it is trained on. Load the set whole.",
            )


def _chosen_token_logps(runner: StepRunner, size: int, keyed: KeyedPairs) -> Float[Tensor, " rows"]:
    """What the model gives each chosen completion, in nats a token; by row number."""
    device, pairs = runner.device, keyed.rows
    windows = (
        keyed.__getitems__(list(range(at, min(at + size, len(pairs)))))
        for at in range(0, len(pairs), size)
    )
    rows = max(pairs.with_format("numpy")["row"][:], default=-1) + 1
    table = torch.zeros(int(rows), dtype=exact_dtype(device), device=device)
    for output, batch in _measured(runner, size, windows, len(pairs)):
        real = batch.counted
        found = output.logps.chosen / output.logps.chosen_tokens
        table[batch.row_ids[real]] = found[real].detach().to(table)
    return ranks.add_up(table)


def _digest(pairs: Sequence[TokenPair]) -> str:
    found = PairDigest()
    for pair in pairs:
        found.add_row(
            {
                "prompt_ids": [*pair.prompt, *pair.start],
                "chosen_ids": pair.chosen,
                "rejected_ids": pair.rejected,
                "weight": pair.weight,
                "margin": pair.margin,
                "chosen_given": pair.chosen_given,
                "rejected_given": pair.rejected_given,
                "gold_ids": pair.gold,
                "gold_given": pair.gold_given,
            }
        )
    return found.hexdigest()
