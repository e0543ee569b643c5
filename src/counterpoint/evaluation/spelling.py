"""A text spelt while its tokens come: only what no later token can change is given out.

1. A character of several bytes may take several tokens. Until it is whole, a tokenizer writes the
   replacement character in its place; that is held back.
2. A carriage return is held back as well: whether it ends a line or moves the cursor is told by
   what follows it.

All pieces together are the text that all tokens together make.

Not here: control characters (``visible``), tokens (``generation``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Spelling:
    """One text, piece by piece.

    Args:
        spells: tokens as text.
    """

    def __init__(self, spells: Callable[[Sequence[int]], str]) -> None:
        self._spells, self._given = spells, ""

    def more(self, ids: Sequence[int]) -> str:
        """What can be given out by now and has not been; often "".

        Args:
            ids: all tokens of the text so far.
        """
        return self._new(self._spells(ids).rstrip(f"{UNFINISHED}\r"))

    def rest(self, ids: Sequence[int]) -> str:
        """What has not been given out of a text that is done.

        Args:
            ids: all tokens of the text.

        Returns:
            The text once more, on a line of its own, if its last tokens have changed the beginning.
        """
        whole = self._spells(ids)
        return self._new(whole) if whole.startswith(self._given) else f"\n{whole}"

    def _new(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        return new
