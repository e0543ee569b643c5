"""``RowTokens`` drawn for a reader: what every token is can be seen without colour.

Each line begins with a mark and each token ends with a bar:

    . The│ prompt│:│            context only
    + It│ is│ [<|endoftext|>]│  carries loss: chosen
    - No│                       carries loss: rejected
    + It│ is│ so│ [<|endoftext|>]│  carries loss: gold
    x  more│                    cut off, never seen by the model

The tokens that stand for a picture are one entry, on a line of its own:

    . [picture 1: cat.png, 640 x 480 pixels, 258 tokens]│

Control characters are written as escapes, so that no data can command a terminal.

Not here: which token is what (``data.row_tokens``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from counterpoint.preference_row import GOLD
from counterpoint.wrap import columns

if TYPE_CHECKING:
    from counterpoint.data.row_tokens import Piece, RowTokens, ShownPicture

BAR, PART_OF_CHARACTER = "│", "·"
LEGEND = (
    f". context   + - carries loss   x cut off   [ ] special   {PART_OF_CHARACTER} part of a "
    "character"
)
CUT_SHOWN = 30
"""Tokens shown at either end of what was cut off; the middle is only counted."""

NAME_SHOWN = 24
"""Columns of a picture's file name; of a longer one the middle is left out."""

_INK = {".": "2", "+": "32", "-": "31", "x": "2;9"}
_SPECIAL = "36"


def draw_tokens(tokens: RowTokens, *, name: str, width: int = 80, color: bool = False) -> str:
    """One row's tokens as lines.

    Args:
        tokens: the row.
        name: its data set, for the heading.
        width: columns that no line exceeds, at least 20.
        color: whether to colour by role, with ANSI sequences.
    """
    facts = [tokens.listed] if tokens.listed else []
    if tokens.boundary:
        facts.append(
            f"the boundary leaves {_count(tokens.boundary)} of the prompt's end to the completions"
        )
    if tokens.same:
        facts.append("cutting made the completions equal: the row teaches nothing")
    facts += [f"the chat template {lost}" for lost in tokens.lost]
    if (tokens.weight, tokens.margin) != (1.0, 0.0):
        facts.append(f"weight {tokens.weight:g}, margin {tokens.margin:g}")
    lines = [f"row {tokens.row} of {name}", *(f"  {fact}" for fact in facts)]
    for part, loss in (("prompt", "."), ("chosen", "+"), ("rejected", "-"), (GOLD, "+")):
        pieces: Sequence[Piece] = getattr(tokens, part)
        if part == GOLD and not pieces:
            continue
        lines += ["", f"{part}: {_told(pieces)}"]
        pictures = tokens.pictures if part == "prompt" else ()
        for (mark, number), run in groupby(_marked(pieces, loss, pictures), itemgetter(0)):
            if number is None:
                shown = _shortened([piece for _, piece in run], mark)
            else:
                shown = [_picture(number, pictures[number])]
            lines += _lines(shown, mark, width, color)
    return "\n".join(lines)


def _told(pieces: Sequence[Piece]) -> str:
    kept, loss = (sum(flags) for flags in ((not p.cut for p in pieces), (p.loss for p in pieces)))
    cut = len(pieces) - kept
    words = f"{_count(kept)}, {loss or 'none'} with loss"
    return f"{words}; {_count(cut)} cut off" if cut else words


def _count(number: int) -> str:
    return f"{number:,} token{'' if number == 1 else 's'}"


def _marked(
    pieces: Sequence[Piece], loss: str, pictures: Sequence[ShownPicture]
) -> Iterator[tuple[tuple[str, int | None], Piece]]:
    """Each token with its mark and the number of the picture that it stands for, if it does."""
    of = {
        place: number
        for number, one in enumerate(pictures)
        for place in range(one.start, one.start + one.tokens)
    }
    for place, piece in enumerate(pieces):
        mark = "x" if piece.cut else loss if piece.loss else "."
        yield (mark, of.get(place)), piece


def _picture(number: int, one: ShownPicture) -> str:
    """All of a picture's tokens in words."""
    name = _printable(one.file)
    if columns(name) > NAME_SHOWN:
        half = NAME_SHOWN // 2 - 2
        name = f"{next(_fitting(name, half))}...{_end_of(name, half)}"
    size = f"{one.width:,} x {one.height:,} pixels"
    return f"[picture {number + 1}: {name or 'bytes'}, {size}, {_count(one.tokens)}]"


def _end_of(text: str, room: int) -> str:
    return next(_fitting(text[::-1], room))[::-1]


def _shortened(run: list[Piece], mark: str) -> list[Piece | str]:
    hidden = len(run) - 2 * CUT_SHOWN
    if mark != "x" or hidden <= 0:
        return [*run]
    return [*run[:CUT_SHOWN], f"... {hidden:,} more ...", *run[-CUT_SHOWN:]]


def _lines(run: Sequence[Piece | str], mark: str, width: int, color: bool) -> Iterator[str]:
    """A run of tokens of one mark, wrapped."""
    room, line, used = width - 2, "", 0
    for piece in run:
        special = True if isinstance(piece, str) else piece.special  # a picture, or a count
        ink = _SPECIAL if special and mark != "x" else _INK[mark]
        for part in _fitting(piece if isinstance(piece, str) else _shown(piece), room - 1):
            size = columns(part) + 1
            if used + size > room:
                yield f"{mark} {line}"
                line, used = "", 0
            line += f"\x1b[{ink}m{part}\x1b[0m{BAR}" if color else f"{part}{BAR}"
            used += size
    yield f"{mark} {line}"


def _shown(piece: Piece) -> str:
    if piece.special:
        return f"[{_printable(piece.text or piece.token)}]"
    return _printable(piece.text) or PART_OF_CHARACTER


def _printable(text: str) -> str:
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _fitting(text: str, room: int) -> Iterator[str]:
    """A text in parts that fit a line; nearly always one."""
    part, used = "", 0
    for each in text:
        size = columns(each)
        if used + size > room:
            yield part
            part, used = "", 0
        part += each
        used += size
    yield part
