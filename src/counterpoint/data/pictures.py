"""The pictures of raw rows: in which cells they are, and which of them may be opened.

1. Columns are ``COLUMNS``, and any other whose cell can be nothing else than a picture. The first
   that holds something counts; ``PATHS`` beside it only say where it came from.
2. Cells are pictures of Pillow, bytes, ``{"bytes", "path"}``, paths, ``file://``, ``data:`` and
   addresses. A text is one path, whatever its letters.
3. Files are opened inside one folder only, links followed, and addresses where that is allowed.

Not here: what a picture is (``counterpoint.picture``), where in a prompt it stands (``marks``),
fetching (``remote``).
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from counterpoint.data.cells import PICTURES, fail
from counterpoint.data.enclosure import check_enclosed
from counterpoint.data.options import PrepareOptions
from counterpoint.data.remote import fetched
from counterpoint.errors import DataError
from counterpoint.picture import MOST_PIXELS, Picture, seen_as_rgb
from counterpoint.preference_row import PreferenceRow

COLUMNS = ("images", "image")
"""Columns of pictures."""

PATHS = ("image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls")
"""Columns of pictures, or of where the pictures beside them came from."""

OWN = ("image", "image_url", "url", "path", "bytes", "source")
"""Keys of such a part, or of an object in it, under which it holds its own picture."""


@dataclass(frozen=True, slots=True)
class PictureRules:
    """What may be opened.

    Args:
        folder: in which paths are looked up and out of which none may lead; None: that of the
            data, or where the process runs; "": none, so that no path is opened.
        allow_remote: whether pictures are fetched from addresses.
        most_pixels: most pixels of one.
        downloads: the folder in which fetched ones are kept; None: nothing is fetched.
    """

    folder: str | None = None
    allow_remote: bool = False
    most_pixels: int = MOST_PIXELS
    downloads: str | None = None

    @classmethod
    def of(cls, options: PrepareOptions) -> PictureRules:
        """Those of a run's options."""
        return cls(options.image_folder, options.allow_remote_images, options.max_image_pixels)


@dataclass(frozen=True, slots=True)
class PictureCell:
    """A picture that was not opened yet.

    Args:
        field: where it stands in the row, as ``Picture.field``.
        value: what stands there.
    """

    field: str
    value: Any


# In which cells


def is_picture_part(part: Any) -> bool:
    """Whether a part of a message's content is a picture."""
    return isinstance(part, Mapping) and part.get("type") in PICTURES


def looks_like_picture(value: Any) -> bool:
    """Whether a cell can be nothing else: what ``datasets`` or Pillow make of a picture, or a list.

    Args:
        value: of any column.
    """
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_one, value))
    return _is_one(value)


def _is_one(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    return is_of_pillow(value)


def is_of_pillow(value: Any) -> bool:
    """Whether a value is a picture of Pillow's, which need not be installed."""
    return any(
        kind.__name__ == "Image" and kind.__module__.startswith("PIL.")
        for kind in type(value).__mro__
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(one is None for one in value.values())
    return value is None or (isinstance(value, str | bytes) and not value)


def is_of_pictures(kind: Any) -> bool:
    """Whether a column's feature is that of pictures or sounds, or of lists of them.

    Args:
        kind: of ``datasets``.
    """
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    if isinstance(inner, Mapping):
        return set(inner) == {"bytes", "path"}
    return type(inner).__name__ in ("Image", "Audio", "Video")


def column_pictures(raw: Mapping[str, Any], row: int) -> list[PictureCell]:
    """The pictures of the column of a row that holds any, in order.

    Args:
        raw: cells by column, as ``formats`` filled them.
        row: its number.

    Raises:
        DataError: CP228 for two such columns.
    """
    others = [n for n, value in raw.items() if n not in COLUMNS and looks_like_picture(value)]
    for names in ((*COLUMNS, *others), PATHS):
        found = {name: cells for name in names if (cells := _cells(raw, name))}
        if len(found) > 1:
            first, second, *_ = found
            fail("CP228", row, second, f"holds pictures beside field {first}. Leave one of them.")
        if found:
            return next(iter(found.values()))
    return []


def _cells(raw: Mapping[str, Any], name: str) -> list[PictureCell]:
    value = raw.get(name)
    if isinstance(value, list | tuple):
        cells = [PictureCell(f"{name}[{n}]", one) for n, one in enumerate(value)]
    else:
        cells = [PictureCell(name, value)]
    return [cell for cell in cells if not _is_empty(cell.value)]


def own_picture(part: Mapping[str, Any]) -> Any:
    """What a part of a message holds of its own picture; None for one of the column's.

    Args:
        part: that is a picture.
    """
    if not _is_empty(both := {key: part.get(key) for key in ("bytes", "path")}):
        return both
    if part.get("type") == "base64":
        return f"data:;base64,{part.get('data')}"
    for key in OWN:
        held = part.get(key)
        if isinstance(held, Mapping) and set(held) - {"bytes", "path"}:
            held = own_picture(held)
        if not _is_empty(held):
            return held
    return None


# Opening them


def opened(
    read: PreferenceRow, cells: Sequence[PictureCell], rules: PictureRules | None
) -> PreferenceRow:
    """A row with its pictures, opened as far as their headers.

    Args:
        read: the row without them.
        cells: its pictures, in the order of their marks.
        rules: what may be opened; None: nothing is, since the model sees none.

    Raises:
        DataError: CP229 for one that may not be opened, or is not there; CP230 for what is no
            picture; CP231 for one that is too large; CP222 where this machine fails.
        SetupError: CP502 without Pillow.
    """
    if rules is None or not cells:
        return read
    row, most = read.row, rules.most_pixels
    pictures = (
        Picture.of(picture_source(cell, row, rules), row, cell.field, most_pixels=most)
        for cell in cells
    )
    return replace(read, pictures=tuple(pictures))


def picture_source(cell: PictureCell, row: int, rules: PictureRules) -> str | bytes:
    """The file or the bytes that a cell means; nothing is read, but an address that is allowed.

    Raises:
        DataError: as ``opened``.
    """
    value = cell.value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if is_of_pillow(value):
        return _encoded(value, cell, row, rules)
    if not isinstance(value, str):
        kind = type(value).__name__
        fail("CP202", row, cell.field, f"is of type {kind}; expected a picture, or a path of one.")
    scheme = value[:16].partition(":")[0].lower() if ":" in value[:16] else ""
    handler: Callable[[str, PictureCell, int, PictureRules], str | bytes] = _SCHEMES.get(
        scheme, _file
    )
    return handler(value, cell, row, rules)


def _encoded(image: Any, cell: PictureCell, row: int, rules: PictureRules) -> bytes:
    """A picture of Pillow's as bytes that are the same with every release of Pillow."""
    width, height = image.size
    if width * height > rules.most_pixels:
        fail(
            "CP231",
            row,
            cell.field,
            f"is a picture of {width:,} x {height:,} pixels, and {rules.most_pixels:,} are "
            "allowed. Make it smaller, or raise max_image_pixels.",
        )
    try:
        return as_bytes(image)
    except (OSError, ValueError, SyntaxError) as error:
        fail("CP230", row, cell.field, f"is a picture that cannot be read: {error}. Replace it.")


def as_bytes(image: Any) -> bytes:
    """A picture of Pillow's, unpacked: PPM has one way only of writing it.

    Args:
        image: of any mode.
    """
    out = io.BytesIO()
    seen_as_rgb(image).save(out, format="PPM")
    return out.getvalue()


def _file(name: str, cell: PictureCell, row: int, rules: PictureRules) -> str:
    if rules.folder == "":
        fail(
            "CP229",
            row,
            cell.field,
            f"{name[:200]!r} is a path, and the data set has no folder of its own. Name the one "
            "in which its pictures lie with image_folder.",
        )
    folder = Path(rules.folder or ".")
    try:
        path = folder / name
        check_enclosed(path, folder)
        return str(path.resolve())
    except DataError:
        fail(
            "CP229",
            row,
            cell.field,
            f"{name[:200]!r} leads out of the folder of the data, {folder.resolve()}. Put the file "
            "into it, or name a folder above both with image_folder.",
        )
    except (OSError, ValueError, RuntimeError) as error:  # a null character, or links in a circle
        fail("CP229", row, cell.field, f"{name[:200]!r} is no path: {error}. Name a file.")


def _file_url(name: str, cell: PictureCell, row: int, rules: PictureRules) -> str:
    url = urlsplit(name)
    if url.netloc not in ("", "localhost"):
        fail("CP229", row, cell.field, f"{name[:200]!r} is a file of another machine. Copy it.")
    return _file(url2pathname(url.path), cell, row, rules)


def _data(name: str, cell: PictureCell, row: int, rules: PictureRules) -> bytes:
    head, comma, body = name.partition(",")
    if not comma:
        fail("CP230", row, cell.field, "is a data address without data. Replace it.")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        fail("CP230", row, cell.field, f"is a data address that is not base64: {error}.")


def is_remote(value: Any) -> bool:
    """Whether a cell names an address of the network."""
    return isinstance(value, str) and value[:8].lower().startswith(("http:", "https:"))


def _remote(name: str, cell: PictureCell, row: int, rules: PictureRules) -> str | bytes:
    if rules.allow_remote and rules.downloads is not None:
        return fetched(name, rules.downloads, row, cell.field)
    fail(
        "CP229",
        row,
        cell.field,
        f"{name[:200]!r} is an address, and nothing is fetched. Download the picture into the "
        "folder of the data, or set allow_remote_images.",
    )


_SCHEMES: Mapping[str, Callable[[str, PictureCell, int, PictureRules], str | bytes]] = {
    "file": _file_url,
    "data": _data,
    "http": _remote,
    "https": _remote,
}
