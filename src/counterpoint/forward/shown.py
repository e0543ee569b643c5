"""What the rows of a batch show, as a layout says it and the hooks around a model read it.

Not here: what is done with it (``seeing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from counterpoint.pair_segments import PairSegments
from counterpoint.picture import SeenPicture
from counterpoint.records import TokenPair

LOOK = "pixel_values"
"""The keyword with which a layout tells ``seeing`` what its rows show. A model that is called where
that is not open takes it for pixels, and fails, as it should; another keyword it would ignore."""


@dataclass(frozen=True, slots=True, eq=False)
class RowsShown:
    """What the rows of a batch show.

    Args:
        pairs: of the batch; in a shared row the first of each prompt.
        segments: where each of them lies in a shared row; none where each completion has a row.
        repeated: whether each place has pixels of its own, as the reference has.
    """

    pairs: tuple[TokenPair, ...]
    segments: tuple[PairSegments, ...]
    repeated: bool = False

    @property
    def places(self) -> list[SeenPicture]:
        """The pictures of all rows, in the order in which rows show them."""
        shown = [seen for pair in self.pairs for seen in pair.seen]
        return shown if self.segments else shown * len(self.pairs[0].completions)

    @property
    def given(self) -> list[SeenPicture]:
        """The pictures that the tower is given: each once, unless each place has its own."""
        places = self.places
        return places if self.repeated else list({seen.digest: seen for seen in places}.values())

    @property
    def numbers(self) -> list[int]:
        """Of each place, the number of its picture among those that are given."""
        if self.repeated:
            return list(range(len(self.places)))
        number = {seen.digest: place for place, seen in enumerate(self.given)}
        return [number[seen.digest] for seen in self.places]


def look_at(
    pairs: tuple[TokenPair, ...], segments: tuple[PairSegments, ...], *, repeated: bool = False
) -> dict[str, RowsShown]:
    """The keyword for a batch that shows pictures; nothing for one without.

    Args:
        pairs: as for ``RowsShown``.
        segments: likewise.
        repeated: likewise.
    """
    return {LOOK: RowsShown(pairs, segments, repeated)} if any(pair.seen for pair in pairs) else {}


def patches_in(pairs: Sequence[TokenPair]) -> int:
    """Patches that the tower reads of some pairs, each picture of a pair once."""
    return sum(seen.patches for pair in pairs for seen in pair.seen)
