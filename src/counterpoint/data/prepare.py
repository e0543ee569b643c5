"""From a raw data set to one of token pairs: encoded, cached, accounted for.

``prepare`` is what the trainer calls, for eager and streaming sets alike; ``iter_pairs`` reads
either result, drops and counts what cannot be used, and yields ``TokenPair``.

Not here: batches (``batching``), files and hub ids (``sources``).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from counterpoint.console.phases import Phase, phase
from counterpoint.data import cache, formats
from counterpoint.data.counts import PARTS, PrepareCounts, little_is_left
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.encode import COLUMNS, FEATURES, encode_rows
from counterpoint.data.encoder import Encoder, encoder_for
from counterpoint.data.options import PrepareOptions
from counterpoint.data.sources import dataset_from_rows
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError
from counterpoint.records import TokenPair

logger = logging.getLogger(__name__)

PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "weight", "margin", "row")
"""The columns of a prepared data set that are trained on."""

PROMPT_OF_TRL = "prompt_input_ids"
"""TRL's name for ``prompt_ids``, the one column of its prepared sets with the same content; beside
ours, in the same memory."""

BATCH = 500
"""Rows per call of the tokenizer."""

STREAM_BATCH = 64
"""The same while streaming, where the first pair waits for the whole of the first batch."""

SHOW_PROGRESS_FROM = 5000
"""Rows from which on a bar of several processes is worth its line."""


@dataclass(slots=True)
class StreamProgress:
    """How far a streaming set has been read in the running pass.

    Args:
        rows: read, usable or not.
    """

    rows: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready to be batched.

    Args:
        pairs: ``Dataset`` of ``PAIR_COLUMNS``, in the raw order, only usable rows; or an
            ``IterableDataset`` of ``encode.COLUMNS``, every row, to be read by ``iter_pairs``.
            Both with ``PROMPT_OF_TRL`` beside them.
        counts: what became of the rows; for a streaming set it fills up while it is read.
        options: the options it was prepared with.
        after: a streaming set without its first rows, which are not encoded.
        progress: how far a streaming set has been read.
    """

    pairs: Dataset | IterableDataset
    counts: PrepareCounts
    options: PrepareOptions = field(default_factory=PrepareOptions)
    after: Callable[[int], IterableDataset] | None = None
    progress: StreamProgress = field(default_factory=StreamProgress)


def prepare(
    dataset: Dataset | IterableDataset | Iterable[Any],
    encoder: Encoder[Any] | PreTrainedTokenizerBase,
    options: PrepareOptions | None = None,
    *,
    name: str = "the data set",
) -> Prepared:
    """Encode every row of a data set.

    Args:
        dataset: raw rows of any shape that ``formats`` knows; a list or iterable of rows is
            read into memory.
        encoder: or a tokenizer, fast or slow, with an EOS token.
        options: limits and what to do with unusable rows; None: the defaults.
        name: the data set's name in messages and counts.

    Returns:
        The pairs and their account. A streaming set is encoded when it is read.

    Raises:
        DataError: CP209 for a set without a usable row; CP201 for missing columns; the first
            unusable row's own code if ``invalid_rows`` is "raise"; CP208 without a template.
        ModelError: CP302 for a tokenizer without EOS.
    """
    options = options or PrepareOptions()
    dataset = lists_of_csv(undecoded(dataset), name)
    if isinstance(dataset, IterableDataset):
        return _prepare_stream(dataset, encoder_for(encoder), options, name)
    if not isinstance(dataset, Dataset) or _is_transformed(dataset):
        dataset = dataset_from_rows(list(dataset), name=name)
    if len(dataset) == 0:
        raise _empty(name)
    formats.check_columns(dataset.column_names, name=name)
    encoded = encode_every_row(dataset, encoder, options, name=name)
    return _account(encoded, options, name)


def iter_pairs(
    prepared: Prepared, *, rows: Iterable[Mapping[str, Any]] | None = None, after: int = 0
) -> Iterator[TokenPair]:
    """Read pairs in order; of a streaming set, count each row and deal with the unusable.

    Args:
        prepared: what ``prepare`` returned; the first pass over a streaming set fills its counts.
        rows: other rows of the same columns to read instead, such as a shuffled or sharded
            view of ``prepared.pairs``.
        after: rows of a streaming set that this pass has read already, and leaves out.

    Yields:
        One pair a usable row.

    Raises:
        DataError: a row's own code if ``invalid_rows`` is "raise"; CP209 at the end of a
            streaming set of which no row was usable.
    """
    if isinstance(prepared.pairs, Dataset):
        yield from (to_pair(record) for record in (prepared.pairs if rows is None else rows))
        return
    if rows is None:
        rows = _rows_after(prepared, after) if after else prepared.pairs
    # a later pass over the stream sees the same rows, which must not be counted again
    name = prepared.counts.name
    first_pass = prepared.counts.rows == after
    counts = prepared.counts if first_pass else PrepareCounts.under(prepared.options, name)
    prepared.progress.rows = after
    kept, told = 0, set(counts.lost)
    for record in rows:
        prepared.progress.rows += 1
        problem = record["problem"]
        if not problem:
            counts.keep(record)
            if first_pass and record["lost"]:
                _tell(counts, told)
            kept += 1
            yield to_pair(record)
        elif prepared.options.invalid_rows == "raise" and not dropped_by_policy(
            problem, prepared.options
        ):
            raise DataError(problem[:5], f"{name}, {problem[6:]} {_ADVICE}")
        else:
            counts.drop(problem)
    if kept == 0 and not after:
        raise _empty(name, counts)


def _tell(counts: PrepareCounts, told: set[str]) -> None:
    """Say what a stream's rows lose in the chat template, each thing when it is first seen."""
    for what in counts.lost.keys() - told:
        logger.warning("%s: the chat template %s, %s", counts.name, what, counts.shown[what])
        told.add(what)


def _rows_after(prepared: Prepared, after: int) -> Iterable[Mapping[str, Any]]:
    without = prepared.pairs.skip if prepared.after is None else prepared.after
    rest: Iterable[Mapping[str, Any]] = without(after)
    return rest


def to_pair(record: Mapping[str, Any]) -> TokenPair:
    """A prepared row as the noun that batches are made of."""
    return TokenPair(
        prompt=record["prompt_ids"],
        chosen=record["chosen_ids"],
        rejected=record["rejected_ids"],
        row=record["row"],
        weight=record["weight"],
        margin=record["margin"],
    )


_ADVICE = 'Repair the data, or set invalid_rows="drop" to train without such rows.'


def _empty(name: str, counts: PrepareCounts | None = None) -> DataError:
    if counts is None or not counts.rows:
        return DataError("CP209", f"{name} has no rows; expected at least one preference pair.")
    first = next(iter(counts.examples.values()))
    return DataError(
        "CP209",
        f"none of the {counts.rows:,} rows of {name} can be used: {counts.by_code()}. "
        f"The first: {first}",
    )


def dropped_by_policy(problem: str, options: PrepareOptions) -> bool:
    """Whether a row is to be dropped because the user chose to drop long rows."""
    return options.truncation == "drop" and problem.startswith("CP204")


def _prepare_stream(
    dataset: IterableDataset,
    encoder: Encoder[Any],
    options: PrepareOptions,
    name: str,
) -> Prepared:
    if dataset.column_names is not None:
        formats.check_columns(dataset.column_names, name=name)
    # row by row: batches of streams that were joined would mix tables of unlike columns
    plain = dataset.with_format(None).map(_row_as_it_is)
    arguments = {"encoder": encoder, "limits": options.limits}

    def after(rows: int) -> IterableDataset:
        encoded = (plain.skip(rows) if rows else plain).map(
            _encode_stream,
            with_indices=True,
            batched=True,
            batch_size=STREAM_BATCH,
            fn_kwargs={**arguments, "first_row": rows},
        )
        return encoded.select_columns([*COLUMNS, PROMPT_OF_TRL])

    return Prepared(after(0), PrepareCounts.under(options, name), options, after)


def _encode_stream(*args: Any, **kwargs: Any) -> dict[str, list[Any]]:
    columns = encode_rows(*args, **kwargs)
    return {**columns, PROMPT_OF_TRL: columns["prompt_ids"]}


def _row_as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def encode_every_row(
    dataset: Dataset,
    encoder: Encoder[Any] | PreTrainedTokenizerBase,
    options: PrepareOptions,
    *,
    name: str = "the data set",
) -> Dataset:
    """Every row of an eager set as ``encode.COLUMNS``, usable or not, from the cache or into it.

    Args:
        dataset: raw rows, at least one.
        encoder: or a tokenizer, fast or slow, with an EOS token.
        options: the limits of the run; ``prepare`` with the same ones finds the result.
        name: the data set's name.

    Raises:
        DataError: CP208 for messages without a template.
        ModelError: CP302 for a tokenizer without EOS.
    """
    read = [column for column in dataset.column_names if column in formats.READ]
    dataset = undecoded(dataset).with_format(None).select_columns(read)
    ready = encoder_for(encoder)
    key = cache.digest(dataset, read, ready, options.limits)
    return cache.cached(
        key, lambda path: _map(dataset, ready, options, path, name), rows=len(dataset)
    )


def _is_transformed(dataset: Dataset) -> bool:
    """Whether the user's own function makes the rows when they are read: then those count."""
    return bool(dataset.format["type"] == "custom")


def _map(
    dataset: Dataset,
    encoder: Encoder[Any],
    options: PrepareOptions,
    path: str | None,
    name: str,
) -> Dataset:
    encode: Callable[..., Any] = encode_rows
    processes = min(options.num_proc or 1, len(dataset))
    with contextlib.ExitStack() as stack:
        if processes == 1:
            now = stack.enter_context(phase(f"preparing the rows of {name}", len(dataset), "rows"))
            encode = partial(_counted, now)
        if processes == 1 or len(dataset) < SHOW_PROGRESS_FROM:
            stack.enter_context(_progress_bars_off())
        return dataset.map(
            encode,
            with_indices=True,
            batched=True,
            batch_size=BATCH,
            writer_batch_size=BATCH,
            remove_columns=dataset.column_names,
            features=FEATURES,
            fn_kwargs={"encoder": encoder, "limits": options.limits},
            num_proc=processes if processes > 1 else None,
            cache_file_name=path,
            keep_in_memory=path is None,
            load_from_cache_file=False,
            new_fingerprint="0" * 16,  # ours is the cache's key; theirs would pickle the tokenizer
            desc="Tokenizing pairs",
        )


def _counted(now: Phase, batch: Any, places: list[int], **more: Any) -> Any:
    found = encode_rows(batch, places, **more)
    now.advance(len(places))
    return found


@contextlib.contextmanager
def _progress_bars_off() -> Iterator[None]:
    if not datasets.is_progress_bar_enabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _account(encoded: Dataset, options: PrepareOptions, name: str) -> Prepared:
    """Count, raise or drop, and leave the pairs."""
    counts = PrepareCounts.under(options, name)
    table = encoded.data.table
    problems = table.column("problem").to_pylist()
    kept = [place for place, problem in enumerate(problems) if not problem]
    for problem in filter(None, problems):
        counts.drop(problem)
    counts.rows += len(kept)
    counts.kept = len(kept)
    unusable = [text for text in problems if text and not dropped_by_policy(text, options)]
    if unusable and options.invalid_rows == "raise":
        raise _unusable(unusable, counts)
    if not kept:
        raise _empty(name, counts)
    used = table
    if len(kept) < len(problems):
        used = table.filter(pa.array([not problem for problem in problems]))
    if counts.digest is not None:
        counts.digest.add_table(used)
    for part in PARTS:
        lengths = pc.list_value_length(used.column(f"{part}_ids"))
        classes = pc.value_counts(lengths).to_pylist()
        counts.lengths[part].update({each["values"]: each["counts"] for each in classes})
        cuts = table.column(f"cut_{part}")
        counts.tokens[part] = pc.sum(lengths).as_py()
        counts.cut_tokens[part] = pc.sum(cuts).as_py()
        counts.cut_rows[part] = pc.sum(pc.greater(cuts, 0)).as_py()
    prompts = pc.list_value_length(used.column("prompt_ids")).to_numpy()
    cuts = used.column("cut_prompt").to_numpy()
    counts.little_rows = int(little_is_left(prompts, cuts).sum())
    counts.boundary_tokens = pc.sum(table.column("boundary")).as_py()
    counts.boundary_rows = pc.sum(pc.greater(table.column("boundary"), 0)).as_py()
    counts.same_rows = pc.sum(table.column("same")).as_py()
    counts.spelled_rows = pc.sum(used.column("spelled")).as_py()
    for each in pc.value_counts(used.column("absent")).to_pylist():
        counts.miss(each["values"], each["counts"])
    lossy = used.filter(pc.not_equal(used.column("lost"), ""))
    for row, lost in zip(lossy["row"].to_pylist(), lossy["lost"].to_pylist(), strict=True):
        counts.lose(row, lost)
    pairs = _with_trl_s_prompt(encoded.select_columns(list(PAIR_COLUMNS)))
    return Prepared(pairs if len(kept) == len(problems) else pairs.select(kept), counts, options)


def _with_trl_s_prompt(pairs: Dataset) -> Dataset:
    prompts = pairs.select_columns(["prompt_ids"]).rename_column("prompt_ids", PROMPT_OF_TRL)
    # side by side two tables share their memory, or the file that they are mapped from
    both: Dataset = datasets.concatenate_datasets([pairs, prompts], axis=1)
    return both


def _unusable(problems: Sequence[str], counts: PrepareCounts) -> DataError:
    first = problems[0]
    by_code = Counter(problem[:5] for problem in problems)
    codes = ", ".join(f"{n:,} × {code}" for code, n in by_code.most_common())
    total = f"{len(problems):,} of its {counts.rows:,} rows cannot be used ({codes})"
    return DataError(first[:5], f"{counts.name}, {first[6:]} In all, {total}. {_ADVICE}")
