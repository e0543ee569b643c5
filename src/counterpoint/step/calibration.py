"""The initial policy, measured before the first step: what relative bounds are a share of.

    evenly spread training pairs ──▶ value of each constraint
    all pairs, if a constraint asks ──▶ nats a token of each chosen completion

Both are kept in every checkpoint: a run that goes on has other weights by then.

Not here: what is made of the values (``constrained``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.console.phases import phase
from counterpoint.data.batching import KeyedPairs
from counterpoint.data.pair_digest import PairDigest
from counterpoint.data.prepare import to_pair
from counterpoint.errors import ConfigError
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.records import PairBatch, TokenPair, exact_dtype
from counterpoint.step.constraint_set import Constraints
from counterpoint.step.share import Share


@dataclass(frozen=True, slots=True)
class Reader:
    """How pairs are run through the model without gradient.

    Args:
        args: the run's options.
        share: cuts one rank's pairs into micro-batches.
        outputs: runs them.
    """

    args: CPOConfig
    share: Callable[[list[TokenPair]], Share]
    outputs: Callable[[Share], list[PairOutput]]

    def batches(
        self, windows: Iterable[Sequence[TokenPair]], pairs: int
    ) -> Iterator[tuple[PairOutput, PairBatch]]:
        """This rank's micro-batches of some windows, each with what the model says of it.

        Args:
            windows: of pairs; the same on every rank.
            pairs: of all windows together.
        """
        with phase("measuring the constraints", pairs, "pairs") as now:
            for number, window in enumerate(windows):
                if number % ranks.count() == ranks.rank():
                    share = self.share(list(window))
                    outputs = share.fitted(partial(self.outputs, share))
                    yield from zip(outputs, share, strict=True)
                now.advance(len(window))


def calibrate(
    constraints: Constraints, reader: Reader, few: Sequence[TokenPair], sets: Mapping[str, Any]
) -> None:
    """Measure the model as it is, and tell the constraints.

    Args:
        constraints: of the run, before its first step.
        reader: of the run.
        few: the calibration slice; the same on every rank.
        sets: all prepared sets by name, the training set as "train".

    Raises:
        ConfigError: CP104 for a constraint that must know all rows of a streamed set.
    """
    if constraints.needs_references:
        for name, pairs in sets.items():
            constraints.references[name] = _chosen_token_logps(reader, pairs, name)
    sums = sums_of(constraints, reader, few)
    constraints.calibrate(sums, pairs=len(few), digest=_digest(few))


def sums_of(
    constraints: Constraints, reader: Reader, pairs: Sequence[TokenPair]
) -> Float[Tensor, "2 constraints"]:
    """Numerators, then denominators, of every constraint on some pairs, over all ranks.

    Args:
        constraints: of the run.
        reader: of the run.
        pairs: of any of its sets; the same on every rank.
    """
    size = reader.args.eval_batch_size
    device = reader.args.device
    sums = torch.zeros(2, len(constraints.all), dtype=exact_dtype(device), device=device)
    windows = (pairs[at : at + size] for at in range(0, len(pairs), size))
    for output, batch in reader.batches(windows, len(pairs)):
        terms = constraints.objective(output.logps, batch.margin)
        sums[0] += constraints.numerators(output.logps, terms, batch)[0]
        sums[1] += constraints.denominators(batch)
    return ranks.add_up(sums)


def _chosen_token_logps(reader: Reader, pairs: Any, name: str) -> Float[Tensor, " rows"]:
    """What the model gives each chosen completion, in nats a token; by row number."""
    if not hasattr(pairs, "__len__"):
        raise ConfigError(
            "CP104",
            f"a displacement constraint compares each row with the initial policy, which cannot "
            f"see the streamed set {name} before it is trained on. Load the set whole.",
        )
    size, device = reader.args.eval_batch_size, reader.args.device
    keyed = KeyedPairs(pairs, to_pair)
    windows = (
        keyed.__getitems__(list(range(at, min(at + size, len(pairs)))))
        for at in range(0, len(pairs), size)
    )
    rows = max(pairs.with_format("numpy")["row"][:], default=-1) + 1
    table = torch.zeros(int(rows), dtype=exact_dtype(device), device=device)
    for output, batch in reader.batches(windows, len(pairs)):
        real = batch.counted
        found = output.logps.chosen / output.logps.chosen_tokens
        table[batch.row_ids[real]] = found[real].detach().to(table)
    return ranks.add_up(table)


def _digest(pairs: Sequence[TokenPair]) -> str:
    found = PairDigest()
    for pair in pairs:
        ids = {
            f"{part}_ids": list(getattr(pair, part)) for part in ("prompt", "chosen", "rejected")
        }
        found.add_row({**ids, "weight": pair.weight, "margin": pair.margin})
    return found.hexdigest()
