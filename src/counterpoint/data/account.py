"""What became of the rows of an encoded table: counted column by column, and raised if it must be.

Not here: encoding (``encode``), which rows of a file are looked at together (``parts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterpoint.data.counts import PrepareCounts, given_tokens, little_is_left
from counterpoint.data.options import PrepareOptions
from counterpoint.errors import DataError
from counterpoint.preference_row import COMPLETIONS, GOLD, PARTS

_ADVICE = 'Repair the data, or set invalid_rows="drop" to train without such rows.'


def usable_of(table: pa.Table) -> pa.Table:
    """The rows of an encoded table that are pairs, in their order."""
    problems = table.column("problem")
    is_pair = pc.equal(problems, "")
    return table if pc.all(is_pair).as_py() else table.filter(is_pair)


def counts_of(table: pa.Table, options: PrepareOptions, name: str) -> PrepareCounts:
    """The account of an encoded table, without a digest.

    Args:
        table: with the columns of ``encode.COLUMNS``.
        options: that it was encoded with.
        name: the data set's name.
    """
    counts = PrepareCounts.under(options, name)
    counts.digest = None
    problems = table.column("problem")
    for problem in problems.filter(pc.not_equal(problems, "")).to_pylist():
        counts.drop(problem)
    used = usable_of(table)
    counts.kept = len(used)
    counts.rows += len(used)
    for part in (*PARTS, GOLD) if len(pc.list_flatten(used.column("gold_ids"))) else PARTS:
        lengths = pc.list_value_length(used.column(f"{part}_ids"))
        classes = pc.value_counts(lengths).to_pylist()
        counts.lengths[part].update({each["values"]: each["counts"] for each in classes})
        cuts = table.column(f"cut_{part}")
        counts.tokens[part] = pc.sum(lengths).as_py() or 0
        counts.cut_tokens[part] = pc.sum(cuts).as_py()
        counts.cut_rows[part] = pc.sum(pc.greater(cuts, 0)).as_py()
    for part in COMPLETIONS:
        counts.given_tokens[part] = given_tokens(used, part)
    spans = [pc.list_value_length(used.column(f"{part}_given")).to_numpy() for part in COMPLETIONS]
    counts.given_rows = int((sum(spans) > 0).sum())
    prompts = pc.list_value_length(used.column("prompt_ids")).to_numpy()
    cuts = used.column("cut_prompt").to_numpy()
    counts.little_rows = int(little_is_left(prompts, cuts).sum())
    counts.boundary_tokens = pc.sum(table.column("boundary")).as_py()
    counts.boundary_rows = pc.sum(pc.greater(table.column("boundary"), 0)).as_py()
    counts.same_rows = pc.sum(table.column("same")).as_py()
    counts.spelled_rows = pc.sum(used.column("spelled")).as_py() or 0
    for each in pc.value_counts(table.column("listed")).to_pylist():
        counts.take(each["values"], each["counts"])
    for each in pc.value_counts(used.column("absent")).to_pylist():
        counts.miss(each["values"], each["counts"])
    lossy = used.filter(pc.not_equal(used.column("lost"), ""))
    for row, lost in zip(lossy["row"].to_pylist(), lossy["lost"].to_pylist(), strict=True):
        counts.lose(row, lost)
    return counts


def check_usable(counts: PrepareCounts, options: PrepareOptions) -> None:
    """Raise what an account must not hold.

    Args:
        counts: of a whole set.
        options: say whether unusable rows are dropped.

    Raises:
        DataError: the first unusable row's own code if ``invalid_rows`` is "raise"; CP209 where no
            row is usable.
    """
    refused = {
        code: number
        for code, number in counts.dropped.items()
        if not dropped_by_policy(code, options)
    }
    if refused and options.invalid_rows == "raise":
        raise _unusable(refused, counts)
    if not counts.kept:
        raise empty(counts.name, counts)


def dropped_by_policy(problem: str, options: PrepareOptions) -> bool:
    """Whether a row is to be dropped because the user chose to drop long rows."""
    return options.truncation == "drop" and problem.startswith("CP204")


def refused_row(name: str, problem: str) -> DataError:
    """A stream's row that cannot be used, from its ``problem``."""
    return DataError(problem[:5], f"{name}, {problem[6:]} {_ADVICE}")


def empty(name: str, counts: PrepareCounts | None = None) -> DataError:
    """The error of a set without a usable row; ``counts`` says what became of those it has."""
    if counts is None or not counts.rows:
        return DataError("CP209", f"{name} has no rows; expected at least one preference pair.")
    first = next(iter(counts.examples.values()))
    return DataError(
        "CP209",
        f"none of the {counts.rows:,} rows of {name} can be used: {counts.by_code()}. "
        f"The first: {first}",
    )


def _unusable(refused: Mapping[str, int], counts: PrepareCounts) -> DataError:
    first = next(text for code, text in counts.examples.items() if code in refused)
    ordered = sorted(refused.items(), key=lambda entry: -entry[1])
    codes = ", ".join(f"{n:,} × {code}" for code, n in ordered)
    number = sum(refused.values())
    total = f"{number:,} of its {counts.rows:,} rows cannot be used ({codes})"
    return DataError(first[:5], f"{counts.name}, {first[6:]} In all, {total}. {_ADVICE}")


def as_json(counts: PrepareCounts) -> dict[str, Any]:
    """An account as plain JSON types, its examples in the order of the rows."""
    return {**counts.state_dict(), "examples": counts.examples, "shown": counts.shown}
