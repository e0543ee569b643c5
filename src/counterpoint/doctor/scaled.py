"""Pictures that a processor makes much smaller, or much larger, than they are.

Of each row the pixels that its patches hold are compared with those of its pictures. Nothing is
opened: sizes stand in the prepared rows, and patches follow from their prompts.

Not here: pictures that are small or large whatever looks at them (``signs``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from counterpoint.data.pair_columns import PICTURES_OF_PAIR
from counterpoint.doctor.findings import MOST_ROWS
from counterpoint.doctor.sightings import Sightings
from counterpoint.planner.pictures import Shown

FAR = 16
"""Times as many pixels, or as few, from which it is said: four times a side."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rows whose pictures are scaled far.

    Args:
        seen: all of them.
        shrunk: how many of them lose most of their pixels.
        grown: how many become much larger.
    """

    seen: Sightings
    shrunk: int
    grown: int

    @property
    def in_words(self) -> str:
        """Which of the two, and how often."""
        said = [
            (self.shrunk, "keep a quarter of each side, or less"),
            (self.grown, "are blown up to four times each side, or more"),
        ]
        return ", ".join(f"{what} in {rows:,}" for rows, what in said if rows)


def scaled_far(usable: pa.Table, shown: Shown, pixels_of_patch: int) -> Scaled:
    """Look for such rows.

    Args:
        usable: prepared rows, of the columns of ``data.encode``.
        shown: what they show.
        pixels_of_patch: how many pixels a patch of the tower has.
    """
    numbers = usable.column("row").to_numpy()
    own = np.asarray(
        [
            sum(one["width"] * one["height"] for one in pictures)
            for pictures in usable.column(PICTURES_OF_PAIR).to_pylist()
        ],
        dtype=np.int64,
    )
    looked_at = shown.patches * pixels_of_patch
    shrunk, grown = own > FAR * looked_at, looked_at > FAR * own
    rows = numbers[(own > 0) & (shrunk | grown)]
    return Scaled(
        Sightings(len(rows), [int(row) for row in rows[:MOST_ROWS]]),
        int((shrunk & (own > 0)).sum()),
        int((grown & (own > 0)).sum()),
    )
