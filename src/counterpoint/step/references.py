"""A reference is asked for every pair of a run once, before the first step that compares with it.

    pairs without a table ──cache──▶ table
                           └─forward pass of training, no gradient──▶ table, and the cache

The initial policy is the run's own model, while it is what it began as. Another one is loaded,
asked and thrown away, so that no step has it in memory. Ranks share out the pairs, and all of them
have the result.

Not here: the tables (``data.referenced``), loading (``models.reference``), what a loss makes of
the numbers (``losses.objective``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from itertools import islice
from typing import Any

import numpy as np
import torch

from counterpoint import ranks
from counterpoint._version import __version__
from counterpoint.checkpoint.adapted import model_identity
from counterpoint.console.phases import phase
from counterpoint.data.batching import KeyedPairs
from counterpoint.data.encoder import Encoder
from counterpoint.data.pair_columns import AT_ONCE, trained_columns
from counterpoint.data.referenced import ReferenceTables, Table, keep_table, kept_table
from counterpoint.errors import DataError, ModelError
from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.log import logger
from counterpoint.models.family import family_of
from counterpoint.models.preparing import embedding_rows
from counterpoint.models.reference import (
    held_otherwise,
    load_reference,
    reference_identity,
    rows_for,
)
from counterpoint.monitor.checksum import digest_of_weights
from counterpoint.objectives import INITIAL, LOSSES, no_gap
from counterpoint.records import exact_dtype
from counterpoint.step.assembly import Assembly
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.reader import PairReader
from counterpoint.step.runner import StepRunner
from counterpoint.step.share import TokenBudget, free
from counterpoint.strict import strict_json

VERSION = 1
"""Raised with every change of what a reference is asked, or how."""


def ask_reference(
    references: ReferenceTables,
    sets: Iterable[Any],
    runner: StepRunner,
    args: Any,
    encoder: Encoder[Any],
    *,
    moved: bool,
) -> None:
    """Know what the reference gives every pair of some sets; every rank must call it.

    Args:
        references: of the run; where its loss compares with nothing, nothing is done.
        sets: prepared pairs.
        runner: of the run.
        args: its options.
        encoder: of its rows.
        moved: whether the run's model is no longer what it began as.

    Raises:
        DataError: CP240 for a streamed set, CP212 for a margin that the loss has no gap for.
        ModelError: CP337 where the initial policy is gone, CP338 for pairs that the reference
            cannot read, CP339 for a log-probability that is not finite.
    """
    missing = references.missing(sets)
    if not missing:
        return
    _refuse_margins(args.loss_type, missing.values())
    if references.wanted == INITIAL and moved:
        raise ModelError(
            "CP337",
            f"the loss compares with the initial policy, which has not seen {len(missing)} of the "
            "sets, and the model is no longer what it began as. Name the model that the run began "
            "with as the reference, or give the trainer its evaluation sets before it trains.",
        )
    rows, held = 0, {}
    if references.wanted != INITIAL:
        rows = ranks.first_does(partial(rows_for, args, runner.model, encoder.tokenizer))
        held = held_otherwise(args, rows)
    with phase("looking up what the reference said"):
        keys = _keys(references, missing, runner, held)
        for digest, pairs in missing.items():
            found = ranks.first_does(partial(_plain_table, keys[digest], len(pairs)))
            if found is not None:
                references.tables[digest] = found
    left = {digest: pairs for digest, pairs in missing.items() if digest not in references.tables}
    if not left:
        logger().info("reference: %s, as the cache has it", references.wanted)
        return

    def ask(reader: PairReader) -> None:
        for digest, pairs in left.items():
            keyed = KeyedPairs(trained_columns(pairs), encoder.pair)
            table = _table(reader, args.eval_batch_size, keyed)
            _check_finite(references.wanted, table, pairs)
            ranks.first_does(partial(keep_table, keys[digest], table))
            mapped = kept_table(keys[digest], len(table))  # so that no memory grows with the set
            references.tables[digest] = table if mapped is None else mapped

    if references.wanted == INITIAL:
        with torch.no_grad(), in_evaluation_mode(runner.model):
            ask(runner.under(_sums_alone(runner)))
    else:
        _ask_another(args, runner, encoder, ask, rows)
        free(runner.device)
    asked = sum(map(len, left.values()))
    logger().info("reference: %s, asked for %s pairs", references.wanted, f"{asked:,}")


def _refuse_margins(loss_type: str, sets: Iterable[Any]) -> None:
    """A loss that reads no gap would leave a pair's margin out without a word."""
    if LOSSES[loss_type].has_gap:
        return
    for pairs in sets:
        numbers = pairs.select_columns(["margin", "row"]).with_format("numpy")
        for some in numbers.iter(AT_ONCE):
            asked = np.flatnonzero(some["margin"])
            if len(asked):
                row, margin = some["row"][asked[0]], float(some["margin"][asked[0]])
                seen = f"row {row}, field margin: is {margin:g}"
                raise DataError("CP212", f"{seen}; {no_gap(loss_type)}")


def _plain_table(key: str, pairs: int) -> Table | None:
    """A table of the cache; a copy in memory where it has to travel to other ranks."""
    found = kept_table(key, pairs)
    return found if found is None or ranks.alone() else np.array(found)


def _keys(
    references: ReferenceTables,
    sets: Mapping[str, Any],
    runner: StepRunner,
    held: Mapping[str, Any],
) -> dict[str, str]:
    """The names in the cache of the tables of some sets; the same on every rank.

    ``held`` is how a named reference is held, beside its precision; the weights of the run's own
    model say it themselves.
    """
    wanted = references.wanted
    if wanted == INITIAL:  # ranks meet in it where each has a part
        about = model_identity(runner.model, dropout=False)
        facts_of_weights = [digest_of_weights(runner.model), dict(about)]
        weights = strict_json(facts_of_weights, sort_keys=True)
    else:
        weights = ranks.first_does(partial(reference_identity, wanted))
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    facts = [VERSION, __version__, packages, weights, runner.conditions()]
    if references.ld_alpha is not None:
        facts.append({"ld_alpha": references.ld_alpha})
    if held:
        facts.append(dict(held))
    total = strict_json(facts, sort_keys=True)
    return {
        digest: hashlib.blake2b(f"{digest} {total}".encode(), digest_size=20).hexdigest()
        for digest in sets
    }


def _ask_another(
    args: Any,
    runner: StepRunner,
    encoder: Encoder[Any],
    ask: Callable[[PairReader], None],
    rows: int,
) -> None:
    """Ask another model than the run's own, which is there meanwhile and no longer."""
    wanted = args.reference
    with phase(f"loading the reference {wanted}"):
        model = ranks.each_does(partial(load_reference, args, runner.model, runner.device, rows))
    known: Any = model.config
    assembly = Assembly(
        model,
        wanted=args.layout,
        pins=args.dataloader_pin_memory,
        vocab_size=embedding_rows(model),
        pad_id=0 if encoder.tokenizer.pad_token_id else 1,
        engine=runner.engine,
        family=family_of(known),
    )
    assembly.look = encoder.look
    budget, alone = TokenBudget(args.max_micro_batch_tokens, lambda: None), _sums_alone(runner)
    with torch.no_grad(), _readable(wanted):
        ask(PairReader(alone, runner.engine, lambda: assembly, budget, runner.device))


def _sums_alone(runner: StepRunner) -> ConstraintSet:
    """No constraint, and an objective that asks for sums: neither drift nor likeness is found."""
    objective = replace(runner.constraints.objective, use_weighting=False)
    return ConstraintSet((), objective, cpo_alpha=0.0, normalized=False, raise_alarm=_no_alarm)


def _no_alarm(alarm: Any) -> None:
    """A set without constraints raises none."""


@contextmanager
def _readable(wanted: str) -> Iterator[None]:
    """Token ids that a reference does not have are no fault of the run's model."""
    try:
        yield
    except ModelError as error:
        if error.code != "CP303":
            raise
        raise ModelError(
            "CP338", f"reference={wanted} cannot read the run's rows: {error}"
        ) from error


def _table(reader: PairReader, size: int, keyed: KeyedPairs) -> Table:
    """The reference's log-probabilities of all pairs of a set, on every rank."""
    device, count, objective = reader.device, len(keyed), reader.constraints.objective
    table = torch.zeros(count, 2, dtype=exact_dtype(device), device=device)
    windows = iter([range(at, min(at + size, count)) for at in range(0, count, size)])
    with phase("asking the reference", count, "pairs") as now:
        # a window for each rank, or none of the last ones: ranks may meet in every pass
        while turn := list(islice(windows, ranks.count())):
            mine = list(turn[ranks.rank()]) if ranks.rank() < len(turn) else []
            # by place: rows of sets that were joined may have the same number
            pairs = [
                replace(pair, row=place)
                for place, pair in zip(mine, _read(keyed, mine), strict=True)
            ]
            for output, batch in reader.measured(pairs, size):
                said = torch.stack(objective.sums(output.logps), 1)
                table[batch.row_ids[batch.counted]] = said[batch.counted].detach().to(table)
            now.advance(sum(map(len, turn)))
    found: Table = ranks.add_up(table).double().cpu().numpy()
    return found


def _read(keyed: KeyedPairs, places: list[int]) -> list[Any]:
    return keyed.__getitems__(places) if places else []


def _check_finite(wanted: str, table: Table, pairs: Any) -> None:
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if not len(bad):
        return
    place = int(bad[0])
    name = ("chosen", "rejected")[int(np.isfinite(table[place, 0]))]
    row, value = pairs[place]["row"], table[place, ("chosen", "rejected").index(name)]
    raise ModelError(
        "CP339",
        f"the log-probability of the {name} completion of row {row} under the reference {wanted} "
        f"is {value} ({len(bad):,} pairs of {len(table):,} have one that is not finite), so that "
        "no loss could compare with it. Look at the reference's weights and precision, or leave "
        "the rows out.",
    )
