"""Nested state as JSON, with its tensors in a safetensors file beside it. No pickle, either way.

A tree is made of mappings, lists, tuples, tensors and JSON's own values. What comes back is equal
to what was written, types included: floats to the last bit, tuples as tuples, keys as they were.
Anything else is refused by its place in the tree, when it is written.

Not here: what the state is of (``optimizer``, ``randomness``, ``trainer.saving``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from counterpoint.errors import SetupError
from counterpoint.strict import NUMBERS, is_odd
from counterpoint.tensor_parts import is_sharded

TENSOR, TUPLE, PAIRS, FLOAT = MARKS = ("__tensor__", "__tuple__", "__pairs__", "__float__")
"""Keys of the objects that stand for what JSON has no word for."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write a tree as ``NAME.json`` and, if it has tensors, ``NAME.safetensors``.

    Args:
        folder: that exists.
        name: of the files.
        tree: the state.

    Raises:
        SetupError: CP517 for a value that is neither data nor a tensor.
        OSError: where the disk refuses.
    """
    content, tensors = taken_apart(tree)
    if tensors:
        with plain_io_errors():
            save_file(tensors, folder / f"{name}.safetensors")
    write_content(folder, name, content)


def taken_apart(tree: Any, *, sharded: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """A tree as JSON can say it, and its tensors by their places in the tree.

    Args:
        tree: the state.
        sharded: whether it may hold tensors of which ranks have parts.

    Raises:
        SetupError: CP517 for a value that is neither data nor a tensor.
    """
    encoder = _Encoder(sharded=sharded)
    return encoder.encoded(tree), encoder.tensors


def write_content(folder: Path, name: str, content: Any) -> None:
    """Write what JSON says of a tree.

    Args:
        folder: that exists.
        name: of the tree.
        content: of ``taken_apart``.

    Raises:
        OSError: where the disk refuses.
    """
    with (folder / f"{name}.json").open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def read_tree(folder: Path, name: str) -> Any:
    """What ``write_tree`` wrote, tensors on the CPU.

    Args:
        folder: a checkpoint that has been verified.
        name: of the files.

    Raises:
        SetupError: CP512 for files that are no tree.
    """
    path = folder / f"{name}.safetensors"
    with _damage_named(folder, name):
        return _decoded(read_content(folder, name), load_file(path) if path.is_file() else {})


def read_content(folder: Path, name: str) -> Any:
    """What JSON says of a tree.

    Args:
        folder: a checkpoint that has been verified.
        name: of the tree.

    Raises:
        SetupError: CP512 for a file that is no JSON.
    """
    with _damage_named(folder, name):
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def put_together(folder: Path, name: str, content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A tree of what JSON says and its tensors.

    Args:
        folder: where it was read, for the message.
        name: of the tree.
        content: of ``read_content``.
        tensors: by their places in the tree.

    Raises:
        SetupError: CP512 where they do not belong together.
    """
    with _damage_named(folder, name):
        return _decoded(content, tensors)


@contextmanager
def _damage_named(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SetupError("CP512", f"{folder / name}.json is damaged: {what}.") from error


@contextmanager
def plain_io_errors() -> Iterator[None]:
    """Let what libraries written in Rust say of the disk come as ``OSError``."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of classes as plain as Exception itself
        found = _OS_ERROR.search(str(error))
        if found is None and not isinstance(error, SafetensorError):
            raise
        number = int(found[1]) if found else 0
        raise OSError(number, os.strerror(number) if found else str(error)) from error


class _Encoder:
    """Takes a tree apart into what JSON can say, and its tensors by their place in the tree."""

    def __init__(self, *, sharded: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._sharded = sharded
        self._held: set[int] = set()

    def encoded(self, value: Any, place: str = "") -> Any:
        if is_odd(value):
            return {FLOAT: str(float(value))}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {TENSOR: self._put(value, place)}
        if isinstance(value, list | tuple):
            parts = [self.encoded(part, f"{place}.{n}") for n, part in enumerate(value)]
            return parts if isinstance(value, list) else {TUPLE: parts}
        if isinstance(value, Mapping):
            pairs = [(key, self.encoded(part, f"{place}.{key}")) for key, part in value.items()]
            if all(isinstance(key, str) and key not in MARKS for key in value):
                return dict(pairs)
            return {PAIRS: [[self.encoded(key, place), part] for key, part in pairs]}
        if isinstance(value, np.generic):
            return self.encoded(value.item(), place)
        raise refuse_unwritable(
            value, place, "which can be written neither as JSON nor as a tensor"
        )

    def _put(self, value: Tensor, place: str) -> str:
        in_parts = self._sharded and is_sharded(value)
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        if not (plain or in_parts) or value.is_complex():
            raise refuse_unwritable(value, place, f"of {value.dtype}, which is no plain tensor")
        name = place.lstrip(".")
        while name in self.tensors:  # keys with dots in them
            name += "'"
        if in_parts:
            self.tensors[name] = value.detach()
            return name
        tensor = value.detach().contiguous()
        # safetensors refuses two names of one memory
        if tensor.numel() and tensor.untyped_storage().data_ptr() in self._held:
            tensor = tensor.clone()
        self._held.add(tensor.untyped_storage().data_ptr())
        self.tensors[name] = tensor
        return name


def refuse_unwritable(value: Any, place: str, why: str) -> SetupError:
    """The error of a value that no checkpoint holds.

    Args:
        value: of a state.
        place: in its tree.
        why: it cannot be written.
    """
    return SetupError(
        "CP517",
        f"the state at {place.lstrip('.')} is a {type(value).__qualname__}, {why}, and "
        "checkpoints hold no pickle. Choose another optimizer, scheduler or callback, or set "
        "save_strategy=no or save_only_model=True.",
    )


def _decoded(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(content, list):
        return [_decoded(part, tensors) for part in content]
    if not isinstance(content, dict):
        return content
    if content.keys() == {TENSOR}:
        return tensors[content[TENSOR]]
    if content.keys() == {FLOAT}:
        return NUMBERS[content[FLOAT]]
    if content.keys() == {TUPLE}:
        return tuple(_decoded(part, tensors) for part in content[TUPLE])
    if content.keys() == {PAIRS}:
        return {_decoded(key, {}): _decoded(part, tensors) for key, part in content[PAIRS]}
    return {key: _decoded(part, tensors) for key, part in content.items()}
