"""A name for the pairs that a run trains on: equal pairs in equal order have equal digests.

Covered are the ids of prompts and completions, the spans of them that carry no loss, the weights,
the margins, and the bytes of pictures.
How they came to be is not: a cache, a stream, other machines, other numbers of processes, and rows
that were dropped in between change nothing.

1. ``PairDigest``, of up to ``ALONE`` pairs: each column is hashed as it comes, so that rows may
   come one by one or in blocks, from the first to the last.
2. ``JoinedDigest``, of more: a polynomial in the hashes of the pairs. That of a set follows from
   those of its parts, however it is cut, so that parts are digested apart, once, by any rank.

Not here: the digest of raw rows, tokenizer and limits that names a file of the cache (``cache``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
NUMBERS = ("weight", "margin")
GIVEN = ("chosen_given", "rejected_given")
GOLD = ("gold_ids", "gold_given")
PICTURES = "pictures"
ROWS_AT_ONCE = 10_000

ALONE = 1 << 20
"""Most pairs that are digested in one go, as releases up to 0.4 digested all."""

PRIME = (1 << 127) - 1
"""Modulus of the polynomial. Two sets of n pairs have equal digests by chance once in PRIME / n."""

BASE = int.from_bytes(hashlib.blake2b(b"pairs in their order", digest_size=15).digest(), "big")
"""Where the polynomial is evaluated."""


def in_one_go(pairs: int) -> bool:
    """Whether so many pairs are digested in one go."""
    return pairs <= ALONE


def pairs_digest(pairs: Dataset, *, as_before: bool = False) -> str:
    """The digest of a prepared data set.

    Args:
        pairs: with the columns of ``pair_columns.PAIR_COLUMNS``; any selection of rows.
        as_before: in one go whatever their number, as up to 0.4.
    """
    table = pairs.with_format("arrow")
    blocks = (table[at : at + ROWS_AT_ONCE] for at in range(0, len(table), ROWS_AT_ONCE))
    return _digest(blocks, as_before or in_one_go(len(table))).hexdigest()


def digest_of(table: pa.Table) -> PairDigest | JoinedDigest:
    """The digest of the rows of a prepared table, all of them."""
    return _digest([table], in_one_go(len(table)))


def _digest(blocks: Iterable[pa.Table], at_once: bool) -> PairDigest | JoinedDigest:
    if not at_once:
        return digests_joined(map(JoinedDigest.of_table, blocks))
    found = PairDigest()
    for table in blocks:
        found.add_table(table)
    return found


def digest_like(then: str, now: str, pairs: Dataset) -> str:
    """The digest of a set in the way in which another was taken, to compare the two.

    Args:
        then: of a checkpoint; up to 0.4 in one go, whatever the number of pairs.
        now: of the set.
        pairs: the set itself.
    """
    is_joined = [digest.startswith(JoinedDigest.PREFIX) for digest in (then, now)]
    return pairs_digest(pairs, as_before=True) if is_joined == [False, True] else now


@dataclass(frozen=True, slots=True)
class JoinedDigest:
    """The digest of a sequence of pairs; ``+`` joins two as the sequences are joined.

    Args:
        pairs: how many, at least 0.
        value: of the polynomial, below ``PRIME``.
    """

    pairs: int = 0
    value: int = 0

    PREFIX: ClassVar[str] = "joined:"

    def __add__(self, after: JoinedDigest) -> JoinedDigest:
        """The digest of these pairs with others behind them."""
        moved = self.value * pow(BASE, after.pairs, PRIME)
        return JoinedDigest(self.pairs + after.pairs, (moved + after.value) % PRIME)

    @classmethod
    def of_table(cls, table: pa.Table) -> JoinedDigest:
        """That of a block of prepared rows."""
        pairs = value = 0
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            for content in _contents(batch):
                value = (value * BASE + _hash(content)) % PRIME
            pairs += len(batch)
        return cls(pairs, value)

    @classmethod
    def of_row(cls, record: Mapping[str, Any]) -> JoinedDigest:
        """That of one prepared row."""
        ids = [np.asarray(record[name], dtype="<i4").tobytes() for name in IDS]
        seen = _given(record) + _seen(record.get(PICTURES) or ())
        return cls(1, _hash(_content(ids, record["weight"], record["margin"], seen)))

    def hexdigest(self) -> str:
        """A word that says which way of digesting it is, and 40 hexadecimal digits."""
        digits = hashlib.blake2b(f"{self.pairs} {self.value}".encode(), digest_size=20)
        return self.PREFIX + digits.hexdigest()


def digests_joined(parts: Iterable[JoinedDigest]) -> JoinedDigest:
    """The digest of sequences behind one another."""
    return reduce(JoinedDigest.__add__, parts, JoinedDigest())


def _contents(batch: pa.RecordBatch) -> Iterator[bytes]:
    columns = [batch.column(name) for name in IDS]
    values = [np.ascontiguousarray(c.flatten(), dtype="<i4").tobytes() for c in columns]
    ends = [np.cumsum(pc.list_value_length(column).to_numpy()) * 4 for column in columns]
    starts = [np.concatenate([[0], end[:-1]]) for end in ends]
    places = zip(
        *(zip(s.tolist(), e.tolist(), strict=True) for s, e in zip(starts, ends, strict=True)),
        strict=True,
    )
    numbers = zip(*(batch.column(name).to_pylist() for name in NUMBERS), strict=True)
    beside = (given + seen for given, seen in zip(_givens(batch), _pictures(batch), strict=True))
    for spans, (weight, margin), seen in zip(places, numbers, beside, strict=True):
        ids = [v[start:end] for v, (start, end) in zip(values, spans, strict=True)]
        yield _content(ids, weight, margin, seen)


def _content(ids: list[bytes], weight: float, margin: float, seen: bytes) -> bytes:
    """All that counts of a pair; its lengths first, so that no two pairs have the same bytes."""
    return struct.pack("<3q2d", *map(len, ids), weight, margin) + b"".join(ids) + seen


def _givens(batch: pa.RecordBatch) -> list[bytes]:
    """What stands for each row's spans without loss and its gold completion; nothing for none."""
    names = [name for name in (*GIVEN, *GOLD) if name in batch.schema.names]
    if not any(len(batch.column(name).flatten()) for name in names):
        return [b""] * len(batch)
    columns = (batch.column(name).to_pylist() for name in names)
    return [_given(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _given(record: Mapping[str, Any]) -> bytes:
    # a word before the numbers, so that no digest of a picture is mistaken for them
    return _lists(record, GIVEN, b"given") + _lists(record, GOLD, b"gold")


def _lists(record: Mapping[str, Any], names: Sequence[str], word: bytes) -> bytes:
    lists = [record.get(name) or () for name in names]
    if not any(lists):
        return b""
    flat = [number for one in lists for number in one]
    return word + struct.pack(f"<{len(names) + len(flat)}q", *map(len, lists), *flat)


def _pictures(batch: pa.RecordBatch) -> list[bytes]:
    """What stands for each row's pictures; nothing for none, as before there were any."""
    if PICTURES not in batch.schema.names or not len(batch.column(PICTURES).flatten()):
        return [b""] * len(batch)
    return [_seen(pictures) for pictures in batch.column(PICTURES).to_pylist()]


def _seen(pictures: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(bytes.fromhex(picture["digest"]) for picture in pictures)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=15).digest(), "big")


class PairDigest:
    """Grows with each row; of more than ``ALONE`` rows that come one by one it is a joined one."""

    def __init__(self) -> None:
        self._joined = JoinedDigest()
        self._rows = 0
        self._given: Any = None
        self._pictures: Any = None
        names = [*IDS, *(f"{name} lengths" for name in IDS), *NUMBERS]
        self._columns = {name: hashlib.blake2b(digest_size=20) for name in names}

    def __eq__(self, other: object) -> bool:
        """Whether both are of equal pairs in equal order."""
        return isinstance(other, PairDigest) and self.hexdigest() == other.hexdigest()

    __hash__ = None  # type: ignore[assignment] # it grows

    def add_row(self, record: Mapping[str, Any]) -> None:
        """Take one prepared row."""
        self._joined += JoinedDigest.of_row(record)
        for name in IDS:
            self._add(name, record[name], "<i4")
            self._add(f"{name} lengths", [len(record[name])], "<i4")
        for name in NUMBERS:
            self._add(name, [record[name]], "<f8")
        self._add_beside([_given(record)], [_seen(record.get(PICTURES) or ())])

    def add_table(self, table: pa.Table) -> None:
        """Take a block of prepared rows, all of them."""
        for batch in table.to_batches():
            for name in IDS:
                column = batch.column(name)
                self._add(name, column.flatten(), "<i4")
                self._add(f"{name} lengths", pc.list_value_length(column), "<i4")
            for name in NUMBERS:
                self._add(name, batch.column(name), "<f8")
            self._add_beside(_givens(batch), _pictures(batch))

    def hexdigest(self) -> str:
        """The digest of what was taken so far, as 40 hexadecimal digits."""
        if not in_one_go(self._joined.pairs):
            return self._joined.hexdigest()
        total = hashlib.blake2b(digest_size=20)
        for column in self._columns.values():
            total.update(column.digest())
        for beside in (self._given, self._pictures):
            if beside is not None:
                total.update(beside.digest())
        return total.hexdigest()

    def _add_beside(self, given: Sequence[bytes], pictures: Sequence[bytes]) -> None:
        """Take what only some rows have; of a set without any the digest is as it always was."""
        self._given = _grown(self._given, given, self._rows)
        self._pictures = _grown(self._pictures, pictures, self._rows)
        self._rows += len(pictures)

    def _add(self, name: str, values: Any, dtype: str) -> None:
        # a byte order that does not depend on the machine
        self._columns[name].update(np.ascontiguousarray(values, dtype=dtype).data)


def _grown(total: Any, rows: Sequence[bytes], first: int) -> Any:
    """A hash with those of some rows that have something to hash; None until one has."""
    for row, content in enumerate(rows, first):
        if content:
            total = hashlib.blake2b(digest_size=20) if total is None else total
            total.update(struct.pack("<2q", row, len(content)) + content)
    return total
