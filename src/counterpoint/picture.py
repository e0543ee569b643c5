"""A picture before it is decoded: where it lies, how large it is, what its bytes are.

1. ``Picture.of`` reads the header alone, so that a small file which would become gigabytes is
   refused before it does. What a header says is checked again when the picture is decoded.
2. Width and height are those of the picture as it is seen: turned as its EXIF data say.
3. One picture is one frame of a format that is known to be safe to open (``FORMATS``). A moving
   one is refused: which of its frames is meant is not said.
4. What is transparent is white, as on a page.

Pillow decodes, and is imported when the first header is read.

Not here: where rows have pictures, and which of them may be opened (``data.pictures``).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from counterpoint.errors import DataError, SetupError
from counterpoint.invocation import EXTRAS, installing

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Names of Pillow's for what is opened; vector graphics and documents are programs."""

MOST_PIXELS = 2**26
"""Pixels of a picture unless a run says another number: 8,192 x 8,192, 192 MiB once decoded."""

MOST_PIXELS_EVER = 2**27
"""The most that a run may say; Pillow itself refuses a little more."""

MOST_BYTES = 2**28
"""Bytes of an encoded picture: 256 MiB, as many as ``MOST_PIXELS`` take that are not packed."""

SEVERAL_ARE_ONE = ("MPO",)
"""Formats whose first frame is the picture and whose others are previews or depth."""

TURNED = range(5, 9)
"""EXIF orientations by which width and height change places."""

_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Picture:
    """What a row's picture is before it is decoded.

    Args:
        source: the path of a file, or the encoded bytes.
        width: in pixels, as it is seen, at least 1.
        height: likewise.
        digest: SHA-256 of the encoded bytes, in hexadecimal.
        row: number of its row in the data set, for messages.
        field: where it stands in the row: "images[0]", or "prompt.image[0]" for the first part of
            messages that is a picture.
    """

    source: str | bytes
    width: int
    height: int
    digest: str
    row: int = -1
    field: str = "images"

    @classmethod
    def of(
        cls, source: str | bytes, row: int, field: str, *, most_pixels: int = MOST_PIXELS
    ) -> Picture:
        """Read the header of a picture, and the digest of all of it.

        Args:
            source: the path of a file, or the encoded bytes.
            row: number of its row.
            field: where it stands in the row.
            most_pixels: most that it may have, at least 1.

        Raises:
            DataError: CP229 for a path that is no file, CP230 for what is no picture, CP231 for
                one that is too large.
            SetupError: CP502 without Pillow.
        """
        found = cls(source, 0, 0, "", row, field)
        data = found._bytes()
        with found._opened(data, most_pixels) as image:
            width, height = _size_seen(image)
        return cls(source, width, height, hashlib.sha256(data).hexdigest(), row, field)

    def load(self) -> Image:
        """Decode it, as RGB.

        Returns:
            A picture of Pillow's, ``width`` x ``height``, that holds no file open.

        Raises:
            DataError: CP229, CP230, CP231 as ``of``; CP230 for a picture that is cut short; CP232
                for one that is no longer what it was when its row was prepared.
            SetupError: CP502 without Pillow.
        """
        data = self._bytes()
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise self._error(
                "CP232",
                "is another picture than when the data set was prepared. Leave pictures as they "
                "are while a run uses them, and start it anew where they had to change.",
            )
        with self._opened(data, self.width * self.height) as image:
            image.load()
            seen = seen_as_rgb(image)
        if seen.size != (self.width, self.height):
            raise self._error(
                "CP230",
                f"is {seen.size[0]} x {seen.size[1]} pixels, and its header says "
                f"{self.width} x {self.height}. Write the picture anew, or remove the row.",
            )
        return seen

    def _bytes(self) -> bytes:
        """All of it, encoded."""
        if isinstance(self.source, bytes):
            self._check_bytes(len(self.source))
            return self.source
        # a FIFO would wait for a writer, and a device may have no end
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            if not stat.S_ISREG(os.stat(self.source).st_mode):
                raise self._error("CP229", f"{self.source} is no file. Name a file, or remove it.")
            with open(os.open(self.source, flags), "rb") as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    raise self._error("CP229", f"{self.source} is no file. Name a file.")
                self._check_bytes(facts.st_size)
                data = file.read(facts.st_size)
        except (OSError, ValueError) as error:  # ValueError: a null character
            if isinstance(error, DataError):
                raise
            if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
                text = f"there is no file {self.source}. Name one that is there."
                raise self._error("CP229", text) from error
            text = f"{self.source} could not be read on this machine: {error}. Try again."
            raise self._error("CP222", text) from error
        return data

    def _check_bytes(self, size: int) -> None:
        if size > MOST_BYTES:
            raise self._error(
                "CP231",
                f"is a picture of more than {MOST_BYTES:,} encoded bytes. Make it smaller, or "
                "remove the row.",
            )

    def _check_size(self, width: int, height: int, most: int) -> None:
        if width < 1 or height < 1:
            raise self._error("CP230", f"is a picture of {width} x {height} pixels. Remove it.")
        if width * height > most:
            raise self._error(
                "CP231",
                f"is a picture of {width:,} x {height:,} pixels, and {most:,} are "
                "allowed. Make it smaller, or raise max_image_pixels.",
            )

    @contextmanager
    def _opened(self, data: bytes, most: int) -> Iterator[Image]:
        """The picture of some bytes, nothing of it decoded; all that goes wrong is coded."""
        pillow = _pillow(self)
        declared = _webp_size(data)
        if declared is not None:  # its decoder takes memory for all of it when it is opened
            self._check_size(*declared, most)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it can do without it does without
                with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
                    self._check_size(width, height, most)
                    self._check_frames(image)
                    yield image
        except (DataError, MemoryError):
            raise
        except Exception as error:  # a decoder of strangers' bytes: anything goes
            if type(error).__name__ == "DecompressionBombError":
                text = f"is a picture of more pixels than any that is opened: {error}"
                raise self._error("CP231", text) from error
            raise self._error("CP230", self._unreadable(data, error)) from error

    def _check_frames(self, image: Image) -> None:
        if image.format not in SEVERAL_ARE_ONE and getattr(image, "is_animated", False):
            raise self._error(
                "CP230",
                f"is a {image.format} of several frames, and a picture has one. Save the frame "
                "that is meant as a file of its own.",
            )

    def _unreadable(self, data: bytes, error: Exception) -> str:
        start = data[:512].lstrip().lower()
        if start.startswith((b"<svg", b"<?xml")) or b"<svg" in start:
            return "is an SVG, a program that draws. Save it as PNG."
        if not data:
            return "is empty. Remove it, or the row."
        if type(error).__name__ == "UnidentifiedImageError":
            return f"is no picture of a kind that is read ({', '.join(FORMATS)}). Save it as PNG."
        said = f"{type(error).__name__}: {str(error)[:200]}"
        return f"is a picture that is damaged or cut short ({said}). Replace it, or remove the row."

    def _error(self, code: str, text: str) -> DataError:
        return DataError(code, f"row {self.row}, field {self.field}: {text}")


@dataclass(frozen=True, slots=True, eq=False)
class SeenPicture:
    """A picture as a model's vision tower takes it, decoded, on the CPU.

    Args:
        digest: of the picture; two with the same one are the same picture.
        tokens: ids of the prompt that stand for it.
        patches: that the tower makes of it.
        inputs: what the model is called with for it: tensors by keyword.
    """

    digest: str
    tokens: int
    patches: int
    inputs: Mapping[str, Any]

    def later(self, decode: Callable[[], Mapping[str, Any]]) -> SeenPicture:
        """The same picture without its pixels, which are decoded when they are asked for.

        Args:
            decode: gives ``inputs`` anew.
        """
        about = {n: self.inputs[n] for n in self.inputs if not n.startswith("pixel_")}
        return replace(self, inputs=LaterInputs([*self.inputs], about, decode))


class LaterInputs(Mapping[str, Any]):
    """What a tower takes of a picture that was looked at before: decoded again if it is asked for.

    Sent to another process it is decoded here, as a loader's workers are to do.

    Args:
        names: of all that there is, in order.
        about: what is known of the picture without its pixels, by name.
        decode: gives all of it.
    """

    def __init__(
        self,
        names: Sequence[str],
        about: Mapping[str, Any],
        decode: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._names, self._about, self._decode = names, about, decode
        self._all: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """One of them."""
        if name in self._about:
            return self._about[name]
        if self._all is None:
            self._all = self._decode()
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        """All of them, decoded."""
        return dict, (dict(self),)


def seen_as_rgb(image: Image) -> Image:
    """A decoded picture as it is seen: turned as its EXIF data say, on white, as RGB.

    Args:
        image: of any mode; it is not changed.
    """
    from PIL import ImageOps

    orientation = _orientation(image)
    if orientation:
        # Pillow turns by what it finds itself: what was found in the header counts
        bare = image.copy()
        bare.getexif()[_ORIENTATION] = orientation
        image = ImageOps.exif_transpose(bare)
    if image.mode.startswith(("I;16", "I", "F")):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        from PIL import Image as Pillow

        clear = image.convert("RGBA")
        page = Pillow.new("RGBA", clear.size, "white")
        page.alpha_composite(clear)
        image = page
    return image.convert("RGB")


def _eight_bits(image: Image) -> Image:
    """Gray of 16 bits in 8: Pillow itself would cut what is above 255 to white."""
    if image.mode == "F":
        return image.convert("L")
    return image.convert("I").point(lambda value: value / 256).convert("L")


def _size_seen(image: Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) in TURNED else (width, height)


def _orientation(image: Image) -> int:
    """How a picture is to be turned, from its header alone; 0 where it stands as it is."""
    if image.format == "TIFF":  # Pillow turns it itself
        return 0
    raw: Any = image.info.get("exif")
    if not isinstance(raw, bytes):
        return 0
    from PIL.Image import Exif

    found = Exif()
    try:
        found.load(raw)
        orientation = found.get(_ORIENTATION)
    except Exception:  # EXIF data are written by anybody: then it is not known
        return 0
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 0


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP; None for anything else, and for one that Pillow refuses."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, three = data[12:16], range(0, 6, 3)
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[24 + n : 27 + n], "little") + 1 for n in three)
        return width, height
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = (int.from_bytes(data[26 + n : 28 + n], "little") & 0x3FFF for n in (0, 2))
    return width, height


def _pillow(asking: Picture) -> Any:
    try:
        from PIL import Image as Pillow
    except ImportError as error:
        raise SetupError(
            "CP502",
            f"row {asking.row}, field {asking.field}: is a picture, and pictures are read by "
            f"Pillow: {installing(EXTRAS['vision'])}",
        ) from error
    return Pillow
