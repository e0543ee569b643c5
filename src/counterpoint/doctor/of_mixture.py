"""Checks of several sets in one run: what they have in common, and what each gives to an epoch.

Not here: what holds of all rows alike (``of_data``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from counterpoint.data.mixture import Mixture
from counterpoint.doctor.findings import Finding, find
from counterpoint.doctor.survey import Survey
from counterpoint.errors import DataError


def of_mixture(mixture: Mixture, found: Survey) -> Iterator[Finding]:
    """Sets without a pair, and rows that are in two sets.

    Args:
        mixture: the sets.
        found: what their rows showed.

    Raises:
        DataError: CP209 for a set of which no row is a pair.
    """
    yield from _in_two_sets(mixture, found)
    if found.tokens is not None:
        mixture.order(found.tokens.numbers, found.name)


def places_of_epoch(mixture: Mixture, found: Survey) -> int:
    """Pairs of an epoch, each as often as it comes there.

    Args:
        mixture: the sets.
        found: what their rows showed.
    """
    if found.tokens is None:
        return found.usable
    try:
        mix = mixture.order(found.tokens.numbers, found.name)
    except DataError:  # which ``of_mixture`` tells of
        return found.usable
    return found.usable if mix is None else mix.pairs


def _in_two_sets(mixture: Mixture, found: Survey) -> Iterator[Finding]:
    later = np.array(found.consistency.duplicates, dtype=np.int64)
    first = np.array(found.consistency.originals, dtype=np.int64)
    mine, theirs = mixture.sets_of(later), mixture.sets_of(first)
    for one, other in sorted({*zip(mine.tolist(), theirs.tolist(), strict=True)}):
        if one == other:
            continue
        rows = later[(mine == one) & (theirs == other)].tolist()
        example = int(first[(mine == one) & (theirs == other)][0])
        (name, row), (named, like) = mixture.set_of(rows[0]), mixture.set_of(example)
        yield find(
            "CW134",
            f"{found.name}: {len(rows):,} of {mixture.parts[one].rows:,} rows of {name} are rows "
            f"of {named} too; row {row} there is row {like} of {named}.",
            rows=rows,
        )
