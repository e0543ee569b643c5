"""Pictures that were looked at: the last ones with their pixels, of others what they are.

Several pairs of a step may show one picture, and later steps show it again. Where what a frozen
tower said of it is at hand (``forward.kept_features``), its pixels are never asked for, and so are
not decoded.

Not here: looking (``vision``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from counterpoint.picture import Picture, SeenPicture

MOST_KEPT = 2**27
"""Bytes of the pictures whose pixels are kept."""

MOST_KNOWN = 2**16
"""Pictures of which it is remembered how many tokens and patches they are; half a KB each."""


class LookedAt:
    """Pictures by their digests.

    Args:
        look: decodes one.
    """

    def __init__(self, look: Callable[[Picture], SeenPicture]) -> None:
        self._look = look
        self._kept: OrderedDict[str, SeenPicture] = OrderedDict()
        self._known: OrderedDict[str, SeenPicture] = OrderedDict()

    def __call__(self, picture: Picture) -> SeenPicture:
        """What a tower takes of a picture; one that is known is decoded when it does.

        Args:
            picture: of a row.

        Raises:
            DataError: for a picture that cannot be decoded.
        """
        known = self._known.get(picture.digest)
        if known is not None and picture.digest not in self._kept:
            return known.later(lambda: self._decoded(picture).inputs)
        seen = self._decoded(picture)
        self._known[picture.digest] = seen.later(dict)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return seen

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process begins with none."""
        return LookedAt, (self._look,)

    def _decoded(self, picture: Picture) -> SeenPicture:
        kept = self._kept.pop(picture.digest, None)
        if kept is None:
            kept = self._look(picture)
        self._kept[picture.digest] = kept
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > MOST_KEPT:
            self._kept.popitem(last=False)
        return kept


def _bytes(seen: SeenPicture) -> int:
    return sum(tensor.nbytes for tensor in seen.inputs.values())
