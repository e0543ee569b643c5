"""What a GGUF file says of itself before its weights: a stranger's bytes, read within its bounds.

The format is llama.cpp's: magic, version, two counts, pairs of key and typed value, and for each
tensor its name, shape, type and place. Long arrays (the vocabulary) are stepped over.

Not here: which file is meant and loading it (``gguf_files``).
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from counterpoint.errors import SetupError, first_line

MAGIC = b"GGUF"

VERSIONS = (2, 3)
"""Of the format, that transformers reads."""

MOST_DIMENSIONS = 8

_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself.

    Args:
        architecture: by llama.cpp's name, as "qwen2".
        parts: files that hold the model, from 1.
        types: tensors of each type, by its name, as ``{"Q4_K": 12, "F32": 5}``.
    """

    architecture: str
    parts: int
    types: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {"architecture": self.architecture, "types": dict(self.types)}

    def said(self) -> str:
        """Its types, the most frequent first."""
        return ", ".join(f"{count:,} x {name}" for name, count in self.types.items())


def read_gguf_header(path: Path) -> GgufHeader:
    """Read it, and see that the file holds all that it announces.

    Args:
        path: of the file; the package ``gguf`` is installed.

    Raises:
        SetupError: CP532 for what is no GGUF file, or is broken or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise _broken(path, "it does not begin with GGUF, and so is another kind of file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content, path).header()
    except OSError as error:
        raise _broken(path, first_line(error)) from error
    except (struct.error, UnicodeDecodeError, OverflowError, ValueError) as error:
        raise _broken(path, "it ends within its header, or holds what no header does") from error


def _broken(path: Path, why: str) -> SetupError:
    return SetupError(
        "CP532",
        f"{path} cannot be read as a GGUF file: {why}. Was the download interrupted? Fetch it "
        "again, and compare its size and checksum with those of its page.",
    )


class _Reader:
    """Reads on from where it is; ``struct`` refuses to read beyond the end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content, self.path, self.at = content, path, len(MAGIC)

    def header(self) -> GgufHeader:
        version, tensors, pairs = self._take("<IQQ")
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise _broken(self.path, f"it is of version {version}, and {known} are read")
        values: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            values[key] = self._value(*self._take("<I"))
        types = self._tensors(tensors, values)
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise _broken(self.path, "it names no architecture (general.architecture)")
        parts = values.get("split.count", 1)
        return GgufHeader(architecture, parts if isinstance(parts, int) else 1, types)

    def _tensors(self, count: int, values: Mapping[str, Any]) -> dict[str, int]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found: Counter[str] = Counter()
        end = 0
        for _ in range(count):
            name = self._string()
            (dimensions,) = self._take("<I")
            if dimensions > MOST_DIMENSIONS:
                raise _broken(self.path, f"its tensor {name} has {dimensions:,} dimensions")
            shape = self._take(f"<{dimensions}Q")
            kind, place = self._take("<IQ")
            if kind not in GGML_QUANT_SIZES:
                raise _broken(self.path, f"its tensor {name} is of a type {kind} that nobody knows")
            block, size = GGML_QUANT_SIZES[kind]
            end = max(end, place + prod(shape) // block * size)
            found[GGMLQuantizationType(kind).name] += 1
        step = values.get("general.alignment", 32)
        if not isinstance(step, int) or step < 1:
            raise _broken(self.path, f"it says general.alignment={step!r}")
        whole = -(-self.at // step) * step + end
        if whole > len(self.content):
            raise _broken(
                self.path,
                f"it has {len(self.content):,} bytes, and its tensors take {whole:,}",
            )
        return dict(found.most_common())

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return found

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if length > len(self.content) - self.at:
            raise ValueError("a text beyond the end")
        self.at += length
        return self.content[self.at - length : self.at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        """A number or a text; None for an array, which is stepped over."""
        if kind in _NUMBERS:
            return self._take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError("a value of a type that nobody knows")
        of, count = self._take("<IQ")
        if count > len(self.content) - self.at:  # each takes a byte at least
            raise ValueError("an array beyond the end")
        if of in _NUMBERS:
            self.at += struct.calcsize(_NUMBERS[of]) * count
        elif of == _STRING:
            for _ in range(count):
                (length,) = self._take("<Q")
                self.at += length
        else:
            raise ValueError("an array of a type that nobody knows")
        return None
