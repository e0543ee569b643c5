"""What pairs show, for a plan: how many patches each has, and a picture to rehearse with.

1. The patches of a picture go up with the tokens that stand for it, or are the same for all: so
   they are counted in prepared prompts, along a line through two pictures of the data's sizes. No
   picture is opened: the processor is asked with blank ones.
2. A rehearsal needs what the tower takes of one picture, which is the larger one of these. What the
   tower holds grows with its patches.

Not here: rehearsing (``rehearsal``), what a processor is (``data.vision``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from counterpoint.data.pair_columns import AT_ONCE, PICTURES_OF_PAIR, pictures_per_pair
from counterpoint.data.vision import VisionEncoder
from counterpoint.picture import Picture, SeenPicture
from counterpoint.records import TokenPair

MOST_BYTES = 2**25
"""Of what a tower takes of the picture that is rehearsed: a larger one is halved."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What the pairs of a data set show.

    Args:
        patches: of the pictures of each pair.
        picture: one of them, blank.
        token: that stands for pictures in prompts.
    """

    patches: npt.NDArray[np.int64]
    picture: SeenPicture
    token: int

    @classmethod
    def of(cls, pairs: Dataset | Sequence[TokenPair], encoder: Any) -> Shown | None:
        """What prepared pairs show; None where they show nothing, or nobody looks.

        Args:
            pairs: prepared.
            encoder: of the run, or None.

        Raises:
            DataError: CP230 where the processor refuses a picture of the data's size.
        """
        if not isinstance(encoder, VisionEncoder):
            return None
        if isinstance(pairs, Dataset) and PICTURES_OF_PAIR not in pairs.column_names:
            return None
        token = encoder.reader.token_id
        counts = np.concatenate([*_stand_ins(pairs, token)])
        if not counts.any():
            return None
        if isinstance(pairs, Dataset):
            numbers = pictures_per_pair(pairs)
        else:
            numbers = np.asarray([len(pair.pictures) for pair in pairs], dtype=np.int64)
        each = np.divide(counts, numbers, out=np.zeros(len(counts)), where=numbers > 0)
        fewest = int(np.where(each > 0, each, np.inf).argmin())
        large, small = (
            _small_enough(pick(_pictures_of(pairs, place), key=_area), encoder)
            for pick, place in ((max, int(each.argmax())), (min, fewest))
        )
        a_token, a_picture = _line_through(small, large)
        patches = np.rint(a_picture * numbers + a_token * counts).astype(np.int64)
        return cls(patches, large, token)

    def pair(self, pair: TokenPair, number: int) -> TokenPair:
        """A pair about a picture that no pair of another number shows.

        Args:
            pair: about nothing; its prompt becomes longer where the picture needs it.
            number: of the pair.
        """
        text = number if number < self.token else number + 1
        missing = len(pair.prompt) - self.picture.tokens
        prompt = [text, *[self.token] * self.picture.tokens, *[text] * max(1, missing - 1)]
        seen = replace(self.picture, digest=str(number))
        return replace(pair, prompt=prompt, seen=(seen,))


def _line_through(small: SeenPicture, large: SeenPicture) -> tuple[float, float]:
    """Patches for each token of a picture, and for the picture itself."""
    tokens = large.tokens - small.tokens
    if not tokens:
        return large.patches / large.tokens, 0.0
    a_token = max(0.0, (large.patches - small.patches) / tokens)
    return a_token, max(0.0, large.patches - a_token * large.tokens)


def _area(picture: Picture) -> int:
    return picture.width * picture.height


def _small_enough(picture: Picture, encoder: VisionEncoder) -> SeenPicture:
    while True:
        seen = encoder.reader.blank(picture)
        size = sum(tensor.nbytes for tensor in seen.inputs.values())
        smaller = replace(picture, width=picture.width // 2, height=picture.height // 2)
        if size <= MOST_BYTES or min(smaller.width, smaller.height) < LEAST_SIDE:
            return seen
        picture = smaller


LEAST_SIDE = 64
"""Pixels of a side that is not halved any further."""


def _stand_ins(pairs: Dataset | Sequence[TokenPair], token: int) -> Iterator[npt.NDArray[np.int64]]:
    """How many tokens of each prompt stand for pictures; of a data set a part at a time."""
    if not isinstance(pairs, Dataset):
        yield np.asarray([list(pair.prompt).count(token) for pair in pairs], dtype=np.int64)
        return
    for table in pairs.select_columns(["prompt_ids"]).with_format("arrow").iter(AT_ONCE):
        column = table.column("prompt_ids").combine_chunks()
        before = np.concatenate([[0], np.cumsum(column.flatten().to_numpy() == token)])
        lengths = column.value_lengths().to_numpy()
        ends = np.cumsum(lengths)
        yield before[ends] - before[ends - lengths]


def _pictures_of(pairs: Dataset | Sequence[TokenPair], number: int) -> Sequence[Picture]:
    if not isinstance(pairs, Dataset):
        return pairs[number].pictures
    kept = pairs.select_columns([PICTURES_OF_PAIR])[number][PICTURES_OF_PAIR]
    return [Picture(b"", one["width"], one["height"], "") for one in kept]
