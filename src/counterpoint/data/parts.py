"""A large data set is prepared part by part, so that no rank does all of it and none holds it.

1. A part is ``PART_ROWS`` rows, whatever the number of ranks. Ranks share the parts out. Each part
   becomes a file of the cache, with its account and its digest beside it, and is mapped, not read.
2. What a part became is remembered under its digest. That of a part of a set on disk is remembered
   too, under the set's fingerprint and its files' sizes and times, so that a second start
   neither hashes nor reads a row.
3. Where ranks do not share a cache, each prepares what is missing in its own.

Not here: what a row becomes (``encode``), sets of one part, and runs without a cache (``prepare``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
from datasets import Dataset

from counterpoint import ranks
from counterpoint.data import cache
from counterpoint.data.account import as_json, counts_of, usable_of
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_digest import JoinedDigest, digest_of, digests_joined, in_one_go

PART_ROWS = 1 << 20
"""Rows of a part."""


def is_large(dataset: Dataset) -> bool:
    """Whether a set is prepared in parts, which are files of the cache."""
    return len(dataset) > PART_ROWS and cache.folder() is not None


class Recipe(NamedTuple):
    """How the rows of a set become a prepared part.

    Args:
        key: names what preparing some rows gives, as ``cache.digest`` does: from the rows, and the
            number of the first of them.
        encode: prepares such rows, from or into the cache: from rows, number of the first, and key.
        identity: of the set and of all else that its keys depend on; None where it is not on disk.
    """

    key: Callable[[Dataset, int], str]
    encode: Callable[[Dataset, int, str], Dataset]
    identity: str | None


class _Part(NamedTuple):
    """What is known of a part before it is opened."""

    key: str
    account: dict[str, Any]
    digest: JoinedDigest


def in_parts(
    dataset: Dataset, recipe: Recipe, options: PrepareOptions, name: str
) -> tuple[Dataset, PrepareCounts]:
    """The usable rows of a large set, mapped from the cache, and the account of all rows.

    Every rank must call it with the same rows.

    Args:
        dataset: raw rows.
        recipe: how they are prepared.
        options: that they are prepared with.
        name: the data set's name.

    Returns:
        All columns of ``encode.COLUMNS``; and the account, with the digest of the pairs.
    """
    starts = range(0, len(dataset), PART_ROWS)
    mine = range(ranks.rank(), len(starts), ranks.count())

    def rows(number: int) -> Dataset:
        return dataset.select(range(starts[number], min(starts[number] + PART_ROWS, len(dataset))))

    def known() -> dict[int, _Part]:
        return {
            number: _prepared(rows(number), starts[number], number, recipe, options)
            for number in mine
        }

    found = {number: part for share in ranks.each_gives(known) for number, part in share.items()}
    parts = [found[number] for number in range(len(starts))]
    counts = PrepareCounts.under(options, name)
    for part in parts:
        of_part = PrepareCounts.under(options, name)
        of_part.load_state_dict(part.account)
        counts.add(of_part)
    opened = [_opened(rows(n), starts[n], part, recipe) for n, part in enumerate(parts)]
    pairs = datasets.concatenate_datasets(opened)
    of_all = digests_joined(part.digest for part in parts)
    counts.digest = digest_of(pairs.data.table) if in_one_go(len(pairs)) else of_all
    return pairs, counts


def encoded_in_parts(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Every row of a large set as ``encode.COLUMNS``, usable or not; in this process alone."""
    parts = []
    for number, first in enumerate(range(0, len(dataset), PART_ROWS)):
        rows = dataset.select(range(first, min(first + PART_ROWS, len(dataset))))
        parts.append(recipe.encode(rows, first, _key(rows, first, number, recipe)))
    return datasets.concatenate_datasets(parts)


def _key(rows: Dataset, first: int, number: int, recipe: Recipe) -> str:
    if recipe.identity is None:
        return recipe.key(rows, first)
    found: str = cache.remembered(f"{recipe.identity}-{number}", lambda: recipe.key(rows, first))
    return found


def _prepared(
    rows: Dataset, first: int, number: int, recipe: Recipe, options: PrepareOptions
) -> _Part:
    """What a part becomes; prepared and counted now, unless that was done before."""
    key = _key(rows, first, number, recipe)
    table = recipe.encode(rows, first, key).data.table

    def counted() -> dict[str, Any]:
        digest = JoinedDigest.of_table(usable_of(table))
        return {
            "counts": as_json(counts_of(table, options, "")),
            "pairs": digest.pairs,
            "digest": str(digest.value),
        }

    found = cache.remembered(f"{key}-account", counted)
    return _Part(key, found["counts"], JoinedDigest(found["pairs"], int(found["digest"])))


def _opened(rows: Dataset, first: int, part: _Part, recipe: Recipe) -> Dataset:
    """The pairs of a part, mapped from a file without the rows that are none."""
    encoded = recipe.encode(rows, first, part.key)
    kept = part.digest.pairs
    if kept in (0, len(rows)):
        return encoded if kept else encoded.select(range(0))
    return cache.cached(
        f"{part.key}-pairs", lambda _: Dataset(usable_of(encoded.data.table)), rows=kept
    )
