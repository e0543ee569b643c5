"""A picture made small for a page: a JPEG of bounded size, and never the bytes that were given.

Not here: which pictures a run keeps so (``runlog.thumbnails``), the page (``report.album``).
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

from counterpoint.picture import Picture

SIDE = 256
"""Pixels of the longer side, at most."""

MOST_BYTES = 2**15
"""Bytes of one: a photograph takes some 15,000, and noise is compressed more."""

_QUALITIES = (85, 70, 50, 30, 10)
"""Of JPEG, in turn, until it is small enough; noise of ``SIDE`` x ``SIDE`` is at the last."""


def thumbnail_of(image: Any) -> bytes:
    """A small JPEG of a picture; nothing but its pixels is in it.

    Args:
        image: of Pillow's, as RGB; it is not changed.

    Returns:
        At most ``MOST_BYTES``.
    """
    from PIL import Image

    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    bare = Image.new("RGB", small.size)  # without EXIF, comments and profiles
    bare.paste(small)
    return next(found for q in _QUALITIES if len(found := _jpeg(bare, q)) <= MOST_BYTES)


def _jpeg(image: Any, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=quality, optimize=True)
    return out.getvalue()


@lru_cache(maxsize=256)
def as_address(content: bytes) -> tuple[str, int, int]:
    """A thumbnail as a ``data:`` address for a page, decoded and encoded anew.

    The file may be a stranger's, so that what a browser is given is of our own making.

    Args:
        content: of the file, at most ``MOST_BYTES``.

    Returns:
        The address, and width and height in pixels.

    Raises:
        DataError: CP230 for what is no picture, CP231 for one that is too large.
        SetupError: CP502 without Pillow.
    """
    image = Picture.of(content, -1, "thumbnail", most_pixels=SIDE * SIDE).load()
    whole = base64.b64encode(thumbnail_of(image)).decode()
    return f"data:image/jpeg;base64,{whole}", image.width, image.height
