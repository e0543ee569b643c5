"""The small pictures beside the samples: bounded, of our own making, each with what it is in words.

What is shown lies in the run's folder, never where the data were: they may have moved, and a folder
of a stranger's may name any file of this machine. Where a small picture is not to be had, the page
says why.

Not here: keeping them (``runlog.thumbnails``), making them (``counterpoint.thumbnail``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import DataError, SetupError
from counterpoint.language import phrase
from counterpoint.markup import Markup, element, fold
from counterpoint.runlog import kept_thumbnail
from counterpoint.runlog.thumbnails import GONE
from counterpoint.thumbnail import as_address

MOST = 64
"""Pictures in a report."""

MOST_CHARACTERS = 2**20
"""Of all their addresses in a report."""

MOST_OF_PROMPT = 8
"""Pictures of one prompt that are shown."""

NAME_SHOWN = 60
"""Characters of a file's name."""

Told = Mapping[str, Any]


class Album:
    """The pictures of one report.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pictures = self._characters = 0

    def fold(self, pictures: Sequence[Told]) -> Markup | None:
        """The pictures of a prompt, to unfold; None for a prompt without.

        Args:
            pictures: as a line of ``samples.jsonl`` tells of them.
        """
        if not pictures:
            return None
        count = len(pictures)
        title = phrase("1 picture") if count == 1 else phrase("{count} pictures", count=count)
        names = ", ".join(_name(one, n) for n, one in enumerate(pictures[:MOST_OF_PROMPT]))
        shown = [self._figure(one, n) for n, one in enumerate(pictures[:MOST_OF_PROMPT])]
        left_out = count - len(shown)
        beyond = phrase("{count} more pictures are not shown.", count=left_out)
        return fold(
            [title, element("small", names)],
            element("div", shown, class_="thumbnails"),
            element("p", beyond, class_="hint") if left_out else None,
            class_="pictures",
        )

    def _figure(self, told: Told, number: int) -> Markup:
        name = _name(told, number)
        width, height = (f"{told.get(side, 0):,}" for side in ("width", "height"))
        words = phrase("{name}, {width} x {height} pixels", name=name, width=width, height=height)
        image = self._image(told, words)
        why = None if isinstance(image, Markup) else element("span", image, class_="flag")
        return element(
            "figure",
            image if why is None else None,
            element("figcaption", words, element("br") if why else None, why),
            class_="thumbnail",
        )

    def _image(self, told: Told, words: str) -> Markup | str:
        """The picture, or why there is none."""
        if told.get("thumbnail") is None:
            return _why_not_kept(str(told.get("why") or ""))
        content = kept_thumbnail(self._folder, told)
        if isinstance(content, str):
            return (
                phrase("its small copy is gone from the folder of the run")
                if content == GONE
                else phrase("its small copy has changed since the run wrote it")
            )
        if self._pictures >= MOST:
            return phrase("left out: this report shows {count} pictures", count=self._pictures)
        try:
            address, width, height = as_address(content)
        except SetupError:
            return phrase("pictures are shown where Pillow is installed")
        except DataError:
            return phrase("its small copy is no picture")
        if self._characters + len(address) > MOST_CHARACTERS:
            return phrase("left out: this report shows {count} pictures", count=self._pictures)
        self._pictures += 1
        self._characters += len(address)
        return element("img", src=address, alt=words, width=width, height=height)


def _name(told: Told, number: int) -> str:
    """The file of a picture, or its number where it lay in the row."""
    file = str(told.get("file") or "")
    if not file:
        return phrase("picture {number}", number=number + 1)
    return file if len(file) <= NAME_SHOWN else f"{file[: NAME_SHOWN // 2]}…{file[-20:]}"


def _why_not_kept(why: str) -> str:
    """Why a run kept no small picture."""
    if why == "many":
        return phrase("not kept: the run kept those that came first")
    if why == "disk":
        return phrase("not kept: the disk refused it")
    if why == "CP229":
        return phrase("not kept: the picture was gone ({code})", code=why)
    if why == "CP232":
        return phrase("not kept: the picture had changed ({code})", code=why)
    return phrase("not kept: it could not be read ({code})", code=why)
