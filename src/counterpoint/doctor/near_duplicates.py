"""Texts that are nearly the same, found by MinHash over runs of characters.

A text is the set of its runs of ``RUN`` characters, case and spacing folded. Two texts are as
alike as these sets: what both have, divided by what either has (Jaccard). Every run is hashed
once; the least hash of each of ``BINS`` equal parts of the range is the text's signature (one
permutation hashing, arXiv:1208.1259), a part that is empty borrowing from the next one
(arXiv:1406.4784). The share of equal entries estimates likeness with a standard error of some
0.04. Texts that agree in one of ``BANDS`` bands of entries are compared; two that are 0.8 alike
hardly ever miss each other, (1 - 0.8^4)^32.

A package for this would bring scipy along, for these few lines of numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RUN, BINS, BANDS = 8, 128, 32
ALIKE = 0.8
"""Likeness from which two texts are nearly the same."""

Signature = npt.NDArray[np.uint32]

_LONGEST = 2048
"""Characters of a text that count: enough to tell texts apart."""

_MOST_CANDIDATES = 50
"""Texts of a bucket that are compared: a phrase that all texts have fills one with all of them."""

_WEIGHTS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) | np.uint64(1)
_EMPTY = np.uint64(2**64 - 1)
_BORROWED = np.uint64(0x9E3779B97F4A7C15)


def signature(text: str) -> Signature:
    """The ``BINS`` entries of a text; texts with the same runs have the same."""
    folded = " ".join(text[:_LONGEST].lower().split()).ljust(RUN)
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    starts = len(codes) - RUN + 1
    hashes = np.zeros(starts, np.uint64)
    for place, weight in enumerate(_WEIGHTS):  # sums and products wrap around, as hashes may
        hashes += codes[place : place + starts] * weight
    # the upper bits of the sum depend on all of its lower ones; bring them down, and once more
    hashes ^= hashes >> np.uint64(32)
    hashes *= _BORROWED
    least = np.full(BINS, _EMPTY)
    np.minimum.at(least, (hashes >> np.uint64(57)).astype(np.intp), hashes)
    filled = np.flatnonzero(least != _EMPTY)
    bins = np.arange(BINS)
    lender = filled[np.searchsorted(filled, bins) % len(filled)]
    # a borrowed entry says how far it came, or entries would agree for the lender's sake alone
    least = least[lender] + ((lender - bins) % BINS).astype(np.uint64) * _BORROWED
    return (least >> np.uint64(20)).astype(np.uint32)


def likeness(one: Signature, other: Signature) -> float:
    """The estimated share of runs that two texts have in common, in [0, 1]."""
    return float((one == other).mean())


def nearly_equal(
    wanted: Sequence[Signature], among: Sequence[Signature], alike: float = ALIKE
) -> list[tuple[int, int]]:
    """Texts that have nearly the same one among others.

    Args:
        wanted: signatures of the texts in question.
        among: signatures of those they may be like.
        alike: likeness that is enough, in (0, 1].

    Returns:
        For each text that has one: its number, and that of the most alike.
    """
    if not wanted or not among:
        return []
    left, right = np.stack(wanted), np.stack(among)
    best: dict[int, tuple[float, int]] = {}
    for band in np.split(np.arange(BINS), BANDS):
        buckets: dict[bytes, list[int]] = {row.tobytes(): [] for row in left[:, band]}
        for number, row in enumerate(right[:, band]):
            bucket = buckets.get(row.tobytes())
            if bucket is not None and len(bucket) < _MOST_CANDIDATES:
                bucket.append(number)
        for number, row in enumerate(left[:, band]):
            for candidate in buckets[row.tobytes()]:
                found = likeness(left[number], right[candidate])
                if found >= alike and found > best.get(number, (0.0, 0))[0]:
                    best[number] = (found, candidate)
    return [(number, candidate) for number, (_, candidate) in sorted(best.items())]
