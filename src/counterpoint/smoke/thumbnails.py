"""The pictures of a miniature: the run's own, small, and not too many of them.

A processor makes as many patches of a picture as its size asks for, or as many of any picture. So
pictures become small first; then pairs are left out whose patches would take minutes.

Not here: the rows (``rows``), what a processor makes of a picture (``data.vision``).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from counterpoint.data.encoder import Encoder
from counterpoint.data.tokenize import encode
from counterpoint.data.vision import VisionEncoder
from counterpoint.forward.shown import patches_in
from counterpoint.picture import Picture
from counterpoint.records import TokenPair

SIDE, LEAST_SIDE = 224, 32
"""Most pixels of a small picture's longer side, and least that a side shrinks to."""

MOST_PATCHES, LEAST_SHOWN = 16_384, 2
"""Patches from which no further pair with pictures is taken, and how many such pairs there are at
least, where the rows have as many."""


def looked_at(pairs: Sequence[TokenPair], encoder: Encoder[Any]) -> list[TokenPair]:
    """Pairs with small pictures, decoded.

    Args:
        pairs: of the run; at least one.
        encoder: of the run.

    Returns:
        Those without pictures as they are, and as many of the others as a miniature can look at.

    Raises:
        DataError: CP2xx for a picture that cannot be read, or that the processor refuses.
    """
    found, patches, shown = [], 0, 0
    for pair in pairs:
        if not pair.pictures or not isinstance(encoder, VisionEncoder):
            found.append(pair)
            continue
        if shown >= LEAST_SHOWN and patches >= MOST_PATCHES:
            continue
        seen = encoder.look(about(pair, [*map(thumbnail, pair.pictures)], encoder))
        patches, shown = patches + patches_in([seen]), shown + 1
        found.append(seen)
    return found


def about(pair: TokenPair, pictures: Sequence[Picture], encoder: VisionEncoder) -> TokenPair:
    """The same pair about other pictures: what stands for each is written anew.

    Args:
        pair: of the run.
        pictures: as many as it has.
        encoder: of the run.

    Raises:
        DataError: CP230 for a size that the processor refuses.
    """
    after = encode([*map(encoder.reader.in_words, pictures)], encoder.tokenizer)
    prompt = list(pair.prompt)
    # from the end, so that earlier places stay where they are
    for (start, end), ids in reversed([*zip(encoder.spans(pair), after, strict=True)]):
        prompt[start:end] = ids
    return replace(pair, prompt=prompt, pictures=tuple(pictures), seen=())


def thumbnail(picture: Picture) -> Picture:
    """The same picture, its longer side at most ``SIDE`` pixels; a small one as it is.

    Args:
        picture: of a row.

    Raises:
        DataError: CP2xx as ``Picture.load``.
    """
    longer = max(picture.width, picture.height)
    if longer <= SIDE:
        return picture
    width, height = (
        # no side shorter than this: processors refuse pictures that are very narrow
        min(side, max(LEAST_SIDE, round(side * SIDE / longer)))
        for side in (picture.width, picture.height)
    )
    out = io.BytesIO()
    picture.load().resize((width, height)).save(out, format="PNG")
    return Picture.of(out.getvalue(), picture.row, picture.field)
