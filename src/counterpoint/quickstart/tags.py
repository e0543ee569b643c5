"""The quickstart's task for a model that sees: reading the code on a tag.

    a picture of "SB0" above "7KZ" -> "SB0 7KZ"

Four pairs of symbols look alike, and a transcription may mix up any of them: then it has each for
the other, wherever the code holds one. So nothing in a text alone says whether it is right, or
which of two is better; the picture must be looked at. In a preference pair both sides are such
transcriptions and chosen has fewer mix-ups than rejected, yet is seldom right.

Not here: the processor and the base model (scripts/train_vision_base.py), and the run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing

if TYPE_CHECKING:
    from PIL.Image import Image

CLEAR = "AKTX147"
"""Symbols that are like no other."""
LOOKS_LIKE_ANOTHER = 0.7
"""Probability that a symbol of a code is one of those that are mixed up."""
FEWEST_PLACES = 3
"""Mix-ups that every code has a place for, at least."""
MIX_UP_RATE = 0.7
"""Probability that a transcription mixes up a given pair of symbols."""
HELD_OUT_TAGS = 5
"""One code in so many is kept for evaluation and never trained on."""

SIDE, LINE, CELL = 48, 24, 14.5
"""Of a picture, a line and a symbol, in pixels."""
SIZES = (17, 18, 19)
"""Of the font, in pixels."""
NOISE = 0.2
"""Share of a pixel that is noise, in [0, 1]."""

QUESTION = "Read it."


class MixUp(StrEnum):
    """Two symbols that a transcription may have for each other."""

    ROUND = "O0"
    CURVED = "S5"
    TWICE_ROUND = "B8"
    ANGULAR = "Z2"


MixUps = frozenset[MixUp]
RIGHT: MixUps = frozenset()
SWAPS = {one: str.maketrans(one.value, one.value[::-1]) for one in MixUp}
ALIKE = "".join(MixUp)


@dataclass(frozen=True, slots=True)
class Tag:
    """A code and how it is drawn.

    Args:
        code: two lines of two or three symbols, with a space between them.
        drawing: decides place, size, shade and noise; any number.
        blank: whether nothing of the code is drawn.
    """

    code: str
    drawing: int
    blank: bool = False


@dataclass(frozen=True, slots=True)
class Transcription:
    """A text for a tag, and what it mixes up.

    Args:
        tag: that was read.
        text: ``transcribed(tag.code, flaws)``.
        flaws: the mix-ups that show; one that the code has no place for is not here.
    """

    tag: Tag
    text: str
    flaws: MixUps


@dataclass(frozen=True, slots=True)
class TagPair:
    """Two transcriptions of one tag.

    Args:
        chosen: the one with strictly fewer mix-ups.
        rejected: the other.
    """

    chosen: Transcription
    rejected: Transcription

    def row(self, picture: str) -> dict[str, Any]:
        """As a row to train on: ``{"prompt", "images", "chosen", "rejected"}``.

        Args:
            picture: path of the tag's picture.
        """
        return {
            "prompt": f"<image>{QUESTION}",
            "images": [picture],
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
        }


# Codes and transcriptions


def transcribed(code: str, mix_ups: MixUps = RIGHT) -> str:
    """The code with some pairs of symbols mixed up.

    Args:
        code: as ``Tag.code``.
        mix_ups: what to have for each other, wherever the code holds one of them.
    """
    for one in mix_ups:
        code = code.translate(SWAPS[one])
    return code


def mix_ups_in(code: str, text: str) -> MixUps | None:
    """What a transcription mixes up.

    Args:
        code: what the tag says.
        text: the transcription to judge.

    Returns:
        The fewest mix-ups that explain it, none for the right text; None if no set of them gives
        this text, which is then another code or none.
    """
    for size in range(len(MixUp) + 1):
        for mix_ups in combinations(MixUp, size):
            if transcribed(code, frozenset(mix_ups)) == text:
                return frozenset(mix_ups)
    return None


def characters_right(code: str, text: str) -> float:
    """One less the edits a character that make the code of a text, at least 0.

    Args:
        code: what the tag says, not empty.
        text: the transcription to judge.
    """
    row = list(range(len(text) + 1))
    for place, symbol in enumerate(code, 1):
        before, row[0] = row[0], place
        for at, given in enumerate(text, 1):
            kept = before + (given != symbol)
            before, row[at] = row[at], min(kept, row[at] + 1, row[at - 1] + 1)
    return max(0.0, 1 - row[-1] / len(code))


def is_held_out_code(code: str) -> bool:
    """Whether a code is kept for evaluation; the base and the pairs never see it."""
    return zlib.crc32(code.encode()) % HELD_OUT_TAGS == 0


def held_out_tags(count: int, seed: int, *, blank: bool = False) -> list[Tag]:
    """Tags for evaluation, each with another code.

    Args:
        count: number of tags.
        seed: the same seed gives the same tags.
        blank: as ``Tag.blank``.
    """
    tags: dict[str, Tag] = {}
    for tag in _tags(random.Random(f"held out {seed}"), blank, held_out=True):
        if len(tags) == count:
            break
        tags.setdefault(tag.code, tag)
    return list(tags.values())


def transcriptions(seed: int) -> Iterator[Transcription]:
    """Endless transcriptions of tags, none held out; what the base learns to read from."""
    rng = random.Random(f"references {seed}")
    for tag in _tags(rng, blank=False, held_out=False):
        yield _transcription(rng, tag)


def tag_pairs(count: int, seed: int, *, blank: bool = False) -> list[TagPair]:
    """Pairs of transcriptions of tags, none held out.

    Two are drawn for a tag; the one with fewer mix-ups is chosen. Where they have equally many,
    the tag is passed over.

    Args:
        count: number of pairs.
        seed: the same seed gives the same pairs.
        blank: as ``Tag.blank``.
    """
    rng = random.Random(f"pairs {seed}")
    drawn_pairs = (_tag_pair(rng, tag) for tag in _tags(rng, blank, held_out=False))
    return list(islice(filter(None, drawn_pairs), count))


def held_out_tag_pairs(tags: Iterable[Tag], seed: int) -> list[TagPair]:
    """Pairs of transcriptions of held-out tags, drawn as ``tag_pairs`` draws them.

    Args:
        tags: one whose two transcriptions have equally many mix-ups is passed over.
        seed: the same seed gives the same pairs.
    """
    rng = random.Random(f"held-out pairs {seed}")
    return list(filter(None, (_tag_pair(rng, tag) for tag in tags)))


def _tags(rng: random.Random, blank: bool, *, held_out: bool) -> Iterator[Tag]:
    # rng.random() alone is promised to give the same sequence in every version of Python
    while True:
        code = " ".join(_line(rng) for _ in range(2))
        places = sum(any(symbol in code for symbol in one) for one in MixUp)
        if places >= FEWEST_PLACES and is_held_out_code(code) == held_out:
            yield Tag(code, _one_of(rng, 2**31), blank)


def _line(rng: random.Random) -> str:
    return "".join(_symbol(rng) for _ in range(2 + _one_of(rng, 2)))


def _symbol(rng: random.Random) -> str:
    symbols = ALIKE if rng.random() < LOOKS_LIKE_ANOTHER else CLEAR
    return symbols[_one_of(rng, len(symbols))]


def _one_of(rng: random.Random, count: int) -> int:
    return int(rng.random() * count)


def _tag_pair(rng: random.Random, tag: Tag) -> TagPair | None:
    both = [_transcription(rng, tag), _transcription(rng, tag)]
    better, worse = sorted(both, key=lambda one: len(one.flaws))
    return TagPair(better, worse) if len(better.flaws) < len(worse.flaws) else None


def _transcription(rng: random.Random, tag: Tag) -> Transcription:
    text = transcribed(tag.code, frozenset(one for one in MixUp if rng.random() < MIX_UP_RATE))
    return Transcription(tag, text, mix_ups_in(tag.code, text) or RIGHT)


# Pictures


def check_drawing() -> None:
    """Whether letters can be drawn.

    Raises:
        SetupError: CP502 without Pillow, or without the part of it that draws letters.
    """
    _font(SIZES[0])


def drawn(tag: Tag) -> Image:
    """The picture of a tag: gray, ``SIDE`` x ``SIDE``, the font that comes with Pillow.

    Args:
        tag: the same one gives the same picture, with one release of Pillow.

    Raises:
        SetupError: CP502 as ``check_drawing``.
    """
    font = _font(SIZES[tag.drawing % len(SIZES)])
    from PIL import Image as Pillow
    from PIL import ImageDraw

    rng = random.Random(tag.drawing)
    page = Pillow.new("L", (SIDE, SIDE), 200 + _one_of(rng, 56))
    ink = _one_of(rng, 80)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate("" if tag.blank else tag.code.split()):
        left = 1 + rng.random() * (SIDE - 2 - CELL * len(line))
        middle = LINE * (number + 0.5) + 3 * (rng.random() - 0.5)
        for place, symbol in enumerate(line):
            at = left + CELL * (place + 0.5), middle
            pen.text(at, symbol, fill=ink, font=font, anchor="mm")
    noise = Pillow.frombytes("L", (SIDE, SIDE), rng.randbytes(SIDE * SIDE))
    return Pillow.blend(page, noise, NOISE)


@cache
def _font(size: int) -> Any:
    try:
        from PIL import ImageFont

        return ImageFont.load_default(size)
    except ImportError as error:
        raise SetupError(
            "CP502",
            "the quickstart's tags are drawn by Pillow, and it or its FreeType is missing: "
            f"{installing(EXTRAS['vision'])}",
        ) from error
