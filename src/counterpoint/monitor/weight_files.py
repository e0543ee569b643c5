"""The tensors of a saved model or adapter, found by name and read one at a time.

Folders that transformers and PEFT write (whole or in shards), or a safetensors file. Only headers
are read until a tensor is asked for, and no model is built.

Not here: weights in pickles, which run code when they are opened; comparing (``difference``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from counterpoint.errors import ModelError

NAMES = ("model.safetensors", "adapter_model.safetensors")
"""What whole models and adapters are saved as; for shards, ``.index.json`` follows."""

PART = 2**22
"""Entries that are read at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor.

    Args:
        dtype: in safetensors' words, for example "BF16".
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Its entries."""
        return math.prod(self.shape)


class WeightFiles:
    """The tensors of a folder or file; a context, which keeps the files open.

    Args:
        path: of the folder or file.

    Raises:
        ModelError: CP301 where there is no model, or it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open = ExitStack()
        self._of: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        """What there is, by name, in the order of the files."""
        try:
            for file, wanted in _files(self.path).items():
                self._add(file, wanted)
        except (OSError, SafetensorError) as error:
            self._open.close()
            raise ModelError("CP301", f"{path} cannot be read as a model: {error}.") from error
        except ModelError:
            self._open.close()
            raise

    def __enter__(self) -> WeightFiles:
        """The files are open already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close them."""
        self._open.close()

    def parts(self, name: str) -> Iterator[Tensor]:
        """A tensor, some of its rows at a time and at most ``PART`` entries, or one row.

        Args:
            name: a key of ``entries``.
        """
        shape = self.entries[name].shape
        if not shape or 0 in shape:
            yield self._of[name].get_tensor(name)
            return
        rows = self._of[name].get_slice(name)
        step = max(1, PART // math.prod(shape[1:]))
        for first in range(0, shape[0], step):
            yield rows[first : first + step]

    def _add(self, file: Path, wanted: set[str] | None) -> None:
        opened = self._open.enter_context(safe_open(str(file), framework="pt"))
        names = list(opened.keys())
        missing = sorted((wanted or set()) - set(names))
        if missing:
            raise ModelError(
                "CP301",
                f"{file} lacks {missing[0]}, which its index says it has; copy the folder again.",
            )
        for name in names:
            header = opened.get_slice(name)
            self._of[name] = opened
            self.entries[name] = Entry(header.get_dtype(), tuple(header.get_shape()))


def _files(path: Path) -> Mapping[Path, set[str] | None]:
    """The files to read, each with the tensors that an index promises in it."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise ModelError("CP301", f"{path} is neither a folder nor a file.")
    for name in NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _of_index(index)
        if (path / name).is_file():
            return {path / name: None}
    others = sorted(file for file in path.glob("*.safetensors") if file.is_file())
    if others:
        return dict.fromkeys(others)
    pickles = sorted(file.name for kind in ("*.bin", "*.pt") for file in path.glob(kind))
    hint = "no safetensors file lies in it."
    if pickles:
        hint = (
            f"its weights are pickles ({pickles[0]}), which are not opened: save the model again "
            "with save_pretrained."
        )
    raise ModelError("CP301", f"{path} holds no model: {hint}")


def _of_index(index: Path) -> Mapping[Path, set[str] | None]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found: dict[Path, set[str] | None] = {}
        for name, file in places.items():
            inside = found.setdefault(index.parent / Path(file).name, set())
            if inside is not None:
                inside.add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("CP301", f"{index} is no index of shards ({error!r}).") from error
    return found
