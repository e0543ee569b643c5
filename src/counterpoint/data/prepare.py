"""From a raw data set to one of token pairs: encoded, cached, accounted for.

``prepare`` is what the trainer calls, for eager and streaming sets alike; ``iter_pairs`` reads
either result, drops and counts what cannot be used, and yields ``TokenPair``.

Not here: batches (``batching``), files and hub ids (``sources``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from counterpoint.console.phases import Phase, phase
from counterpoint.data import cache, formats
from counterpoint.data.account import (
    check_usable,
    counts_of,
    dropped_by_policy,
    empty,
    refused_row,
    usable_of,
)
from counterpoint.data.bars import progress_bars_off
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.encode import COLUMNS, FEATURES, encode_rows
from counterpoint.data.encoder import Encoder, encoder_for
from counterpoint.data.list_order import ListOrder, lists_in
from counterpoint.data.mixed_order import MixedOrder
from counterpoint.data.mixture import Mixture
from counterpoint.data.options import PrepareOptions
from counterpoint.data.order import LISTS_TOGETHER, Order, order_of
from counterpoint.data.pair_columns import PROMPT_OF_TRL, paired, to_pair
from counterpoint.data.pair_digest import digest_of
from counterpoint.data.parts import Recipe, encoded_in_parts, in_parts, is_large
from counterpoint.data.picture_files import files_seen, folder_of
from counterpoint.data.several import apart_while_read, one_rejected_a_row
from counterpoint.data.sources import dataset_from_rows
from counterpoint.data.undecoded import undecoded
from counterpoint.records import TokenPair

logger = logging.getLogger(__name__)

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
        in_lane: some shards of a streaming set: of so many lanes (second) the one of a number.
        start_tokens: ids at the end of each row's prompt ids that a decoder begins with.
        mix: how an epoch is made of several sets; None where it is all pairs.
        lists: which pairs belong together, being of one list; None where none do.
    """

    pairs: Dataset | IterableDataset
    counts: PrepareCounts
    options: PrepareOptions = field(default_factory=PrepareOptions)
    after: Callable[[int], IterableDataset] | None = None
    progress: StreamProgress = field(default_factory=StreamProgress)
    in_lane: Callable[[int, int], Prepared] | None = None
    start_tokens: int = 0
    mix: MixedOrder | None = None
    lists: ListOrder | None = None

    @property
    def places(self) -> int:
        """Places of an epoch of a set that is no stream."""
        return len(self.pairs) if self.mix is None else self.mix.pairs

    def order(self, seed: int | None, epoch: int, *, version: int) -> Order:
        """What stands at each place of an epoch of a set that is no stream.

        Args:
            seed: of the shuffling; None keeps the set's order.
            epoch: from 0.
            version: as for ``order_of``.
        """
        if self.mix is not None:
            return self.mix.orders(seed)(epoch)
        if self.lists is not None and version >= LISTS_TOGETHER:
            return self.lists.order(seed, epoch)
        return order_of(len(self.pairs), seed, epoch, version=version)


def prepare(
    dataset: Dataset | IterableDataset | Mixture | Iterable[Any],
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
    options, encoder = options or PrepareOptions(), encoder_for(encoder)
    if isinstance(dataset, Mixture):
        with dataset.locating():
            found = prepare(dataset.rows, encoder, options, name=name)
        return replace(found, mix=dataset.mixed(found.pairs, found.counts, name))
    dataset = lists_of_csv(undecoded(dataset), name)
    if isinstance(dataset, IterableDataset):
        return _prepare_stream(dataset, encoder, options, name)
    if not isinstance(dataset, Dataset) or _is_transformed(dataset):
        dataset = dataset_from_rows(list(dataset), name=name)
    if len(dataset) == 0:
        raise empty(name)
    dataset = one_rejected_a_row(dataset)
    formats.check_columns(dataset.column_names, name=name)
    rows, recipe = _recipe(dataset, encoder, options, name)
    if is_large(dataset):
        pairs, counts = in_parts(rows, recipe, options, name)
        check_usable(counts, options)
        kept = pairs.data.table.column("row")
        rows = rows if len(kept) == len(rows) else rows.select(kept.to_numpy())
        found = Prepared(paired(pairs, rows), counts, options)
    else:
        encoded = recipe.encode(rows, 0, recipe.key(rows, 0))
        found = _account(encoded, rows, options, name)
    begun, lists = encoder.start_tokens, lists_in(dataset, found.pairs)
    return replace(found, start_tokens=begun, lists=lists)


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
        records = prepared.pairs if rows is None else rows
        yield from (to_pair(record, prepared.start_tokens) for record in records)
        return
    if rows is None:
        rows = _rows_after(prepared, after) if after else prepared.pairs
    # a later pass over the stream sees the same rows, which must not be counted again
    name = prepared.counts.name
    first_pass = prepared.counts.rows == after
    counts = prepared.counts if first_pass else PrepareCounts.under(prepared.options, name)
    prepared.progress.rows = after
    kept = 0
    told = set(counts.lost) if first_pass else None
    for pair in _usable(rows, counts, prepared, told):
        prepared.progress.rows += 1
        if pair is not None:
            kept += 1
            yield pair
    if kept == 0 and not after:
        raise empty(name, counts)


def lane_reader(
    prepared: Prepared, lanes: int
) -> Callable[[int, int, PrepareCounts], Iterator[TokenPair | None]]:
    """What reads a streaming set in lanes, as ``lanes.Pull`` says.

    Args:
        prepared: the whole set.
        lanes: how many; at most its shards.
    """
    told: set[str] = set()

    def pull(lane: int, after: int, counts: PrepareCounts) -> Iterator[TokenPair | None]:
        if prepared.in_lane is None:
            part = replace(prepared, pairs=prepared.pairs.shard(lanes, lane), after=None)
        else:
            part = prepared.in_lane(lane, lanes)
        rows = _rows_after(part, after) if after else part.pairs
        yield from _usable(rows, counts, prepared, told)

    return pull


def lanes_in_a_row(prepared: Prepared, lanes: int) -> Iterator[TokenPair]:
    """All pairs of a streaming set that another one is read in lanes beside.

    ``take`` and ``skip`` share their number out among lanes: two sets that were cut from one stream
    have no row in common if both are read so, or neither.

    Args:
        prepared: what ``prepare`` returned.
        lanes: how many; at most its shards.
    """
    first = prepared.counts.rows == 0
    counts = prepared.counts if first else PrepareCounts.under(prepared.options, "")
    pull = lane_reader(prepared, lanes)
    found = (pair for lane in range(lanes) for pair in pull(lane, 0, counts))
    yield from (pair for pair in found if pair is not None)
    if not counts.kept:
        raise empty(prepared.counts.name, counts)


def _usable(
    rows: Iterable[Mapping[str, Any]],
    counts: PrepareCounts,
    prepared: Prepared,
    told: set[str] | None,
) -> Iterator[TokenPair | None]:
    """A stream's rows as pairs, None where one is none; ``told`` is what was said of them."""
    options = prepared.options
    for record in rows:
        problem = record["problem"]
        counts.take(record["listed"])
        if not problem:
            counts.keep(record)
            if record["lost"] and told is not None:
                _tell(counts, told)
            yield to_pair(record, prepared.start_tokens)
        elif options.invalid_rows == "raise" and not dropped_by_policy(problem, options):
            raise refused_row(counts.name, problem)
        else:
            counts.drop(problem)
            yield None


def _tell(counts: PrepareCounts, told: set[str]) -> None:
    """Say what a stream's rows lose in the chat template, each thing when it is first seen."""
    for what in counts.lost.keys() - told:
        logger.warning("%s: the chat template %s, %s", counts.name, what, counts.shown[what])
        told.add(what)


def _rows_after(prepared: Prepared, after: int) -> Iterable[Mapping[str, Any]]:
    without = prepared.pairs.skip if prepared.after is None else prepared.after
    rest: Iterable[Mapping[str, Any]] = without(after)
    return rest


def _prepare_stream(
    dataset: IterableDataset,
    encoder: Encoder[Any],
    options: PrepareOptions,
    name: str,
    lane: tuple[int, int] = (0, 1),
) -> Prepared:
    if dataset.column_names is not None:
        formats.check_columns(dataset.column_names, name=name)
    number, lanes = lane
    read = dataset.shard(lanes, number) if lanes > 1 else dataset
    plain = apart_while_read(read, number, lanes)
    arguments = {
        **{"encoder": encoder, "limits": options.limits, "lane": lane},
        **{"folder": folder_of(dataset), "whole": True},
    }

    def after(rows: int) -> IterableDataset:
        encoded = (plain.skip(rows) if rows else plain).map(
            _encode_stream,
            with_indices=True,
            batched=True,
            batch_size=STREAM_BATCH,
            fn_kwargs={**arguments, "first_row": rows},
        )
        return encoded.select_columns([*COLUMNS, PROMPT_OF_TRL])

    def in_lane(number: int, lanes: int) -> Prepared:
        return _prepare_stream(dataset, encoder, options, name, (number, lanes))

    counts = PrepareCounts.under(options, name)
    begun = encoder.start_tokens
    return Prepared(after(0), counts, options, after, in_lane=in_lane, start_tokens=begun)


def _encode_stream(
    batch: Any, rows: list[int], *, first_row: int, lane: tuple[int, int], **more: Any
) -> dict[str, list[Any]]:
    number, lanes = lane
    # a row's number says its lane too: no two rows of a stream have the same
    numbers = [(row + first_row) * lanes + number for row in rows] if lanes > 1 else rows
    columns = encode_rows(batch, numbers, first_row=first_row if lanes == 1 else 0, **more)
    return {**columns, PROMPT_OF_TRL: columns["prompt_ids"]}


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
    rows, recipe = _recipe(dataset, encoder, options, name)
    if is_large(dataset):
        return encoded_in_parts(rows, recipe)
    return recipe.encode(rows, 0, recipe.key(rows, 0))


def _recipe(
    dataset: Dataset,
    encoder: Encoder[Any] | PreTrainedTokenizerBase,
    options: PrepareOptions,
    name: str,
) -> tuple[Dataset, Recipe]:
    """The columns of a set that are read, and how its rows are prepared."""
    read = formats.columns_read(dataset)
    rows = undecoded(dataset).with_format(None).select_columns(read)
    ready, limits, folder = encoder_for(encoder), options.limits, folder_of(dataset)

    def key(some: Dataset, first: int) -> str:
        files = files_seen(some, ready.pictures, folder)
        return cache.digest(some, read, ready, limits, first_row=first, beside=files)

    def encode(some: Dataset, first: int, key: str) -> Dataset:
        make = partial(_map, some, ready, options, name=name, first_row=first, folder=folder)
        return cache.cached(key, lambda path: make(path=path), rows=len(some))

    # whose pictures lie in files is not known without a look at its rows
    on_disk = ready.pictures is None and cache.identity_on_disk(dataset, ready, limits)
    return rows, Recipe(key, encode, on_disk or None)


def _is_transformed(dataset: Dataset) -> bool:
    """Whether the user's own function makes the rows when they are read: then those count."""
    return bool(dataset.format["type"] == "custom")


def _map(
    dataset: Dataset,
    encoder: Encoder[Any],
    options: PrepareOptions,
    *,
    path: str | None,
    name: str,
    first_row: int = 0,
    folder: str | None = None,
) -> Dataset:
    encode: Callable[..., Any] = encode_rows
    processes = min(options.num_proc or 1, len(dataset))
    if first_row:
        name = f"{name} from row {first_row:,}"
    with contextlib.ExitStack() as stack:
        if processes == 1:
            now = stack.enter_context(phase(f"preparing the rows of {name}", len(dataset), "rows"))
            encode = partial(_counted, now)
        if processes == 1 or len(dataset) < SHOW_PROGRESS_FROM:
            stack.enter_context(progress_bars_off())
        return dataset.map(
            encode,
            with_indices=True,
            batched=True,
            batch_size=BATCH,
            writer_batch_size=BATCH,
            remove_columns=dataset.column_names,
            features=FEATURES,
            fn_kwargs={
                **{"encoder": encoder, "limits": options.limits},
                **{"first_row": first_row, "folder": folder},
            },
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


def _account(encoded: Dataset, raw: Dataset, options: PrepareOptions, name: str) -> Prepared:
    """Count, raise or drop, and leave the pairs."""
    table = encoded.data.table
    counts = counts_of(table, options, name)
    check_usable(counts, options)
    counts.digest = digest_of(usable_of(table))
    pairs = paired(encoded, raw)
    if counts.kept < len(encoded):
        pairs = pairs.select(np.flatnonzero(pc.equal(table.column("problem"), "").to_numpy()))
    return Prepared(pairs, counts, options)
