"""A whole model of a checkpoint: what plain transformers and PEFT open, whoever has written it.

Tensors go from the parts into the file one at a time. A file of safetensors is a header, which
follows from names, shapes and precisions alone, and then the tensors' bytes in that order; so no
more than one tensor is in memory, or one layer where transformers saves it in other pieces.

Not here: the command (``cli.consolidate``), reading parts (``shards``).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import HubStrategy

from counterpoint import ranks
from counterpoint.checkpoint.folder import PARTS, checkpoints, step_of
from counterpoint.checkpoint.manifest import MANIFEST, SHARDS, Manifest, files_in, verify
from counterpoint.checkpoint.resumption import OPTIMIZER as OPTIMIZER_TREE
from counterpoint.checkpoint.resumption import SHARED
from counterpoint.checkpoint.saving import filled_with_model, save_model_folder
from counterpoint.checkpoint.sharded import MODEL, Shards
from counterpoint.checkpoint.shards import Shape, ShardReader
from counterpoint.checkpoint.state_file import TRAINER_STATE
from counterpoint.checkpoint.weights import INDEX, WEIGHTS, saved_form
from counterpoint.errors import SetupError

LARGEST = 50_000_000_000
"""Bytes of a file about which a model gets another one, as transformers has it."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls a precision."""

_OF_A_RUN = re.compile(
    rf"({SHARED}|{OPTIMIZER_TREE}|rank-\d+)\.(json|safetensors)|{TRAINER_STATE}|{SHARDS}"
    rf"|({MODEL}|{OPTIMIZER_TREE})/.*"
)
"""Files of a checkpoint that no whole model has."""

_LAYER = re.compile(r"(.*?\.\d+\.).*")
"""A name up to the number of its layer."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A tensor of a file.

    Args:
        name: in the file.
        shape: of it.
        dtype: of it.
    """

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def find_whole(path: Path) -> tuple[Path, Manifest]:
    """The checkpoint that a path means: itself, or a run's newest; verified.

    Args:
        path: of a checkpoint, or of a run.

    Raises:
        SetupError: CP507 for a folder with no checkpoint in it; CP511, CP512, CP514 or CP521 for
            one that is not whole. A damaged one is named, and no earlier one taken for it.
    """
    if (path / MANIFEST).is_file() or step_of(path) is not None:
        return path, verify(path, step=step_of(path))
    every = checkpoints(path) if path.is_dir() else []
    if not every:
        raise SetupError(
            "CP507", f"{path} is neither a checkpoint nor a run with one (checkpoint-N)."
        )
    return every[-1], verify(every[-1], step=step_of(every[-1]))


def consolidate(checkpoint: Path, listed: Collection[str], target: Path) -> list[str]:
    """Write the whole model of a checkpoint; each of its files is there whole, or not at all.

    Args:
        checkpoint: verified.
        listed: names of its files.
        target: gets the model, its configuration and its tokenizer; other files there stay.

    Returns:
        Names of the files that were written.

    Raises:
        SetupError: CP524 for parts that do not make up a tensor.
        OSError: where the disk refuses.
    """
    with filled_with_model(target) as staged:
        write_whole(checkpoint, listed, staged)
        return sorted(files_in(staged))


def save_sharded_model(folder: Path, write: Callable[[Path], None]) -> None:
    """Save a whole model of which ranks hold parts; every rank calls it.

    The parts go through the disk: a rank that gathered them one by one could not stop for an
    error without leaving the others in an exchange.

    Args:
        folder: that gets it; each of its files is there whole, or as it was before.
        write: writes the parts of this rank, and the first one's other files; meets no other.

    Raises:
        SetupError: CP516 where another run writes there.
        OSError: where the disk refuses.
    """
    place = folder / PARTS

    def begin() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)

    ranks.first_does(begin)
    try:
        ranks.each_does(partial(write, place))
        ranks.first_does(
            lambda: save_model_folder(
                folder, lambda staged: write_whole(place, set(files_in(place)), staged)
            )
        )
    finally:
        if ranks.rank() == 0:
            shutil.rmtree(place, ignore_errors=True)


def lay_beside(checkpoint: Path, trainer: Any) -> None:
    """Make the whole model of a checkpoint in its run's folder, from where a hub is sent it.

    Not where transformers sends nothing: before the end of a run, if that was asked for, or while
    it is still sending an earlier one.

    Args:
        checkpoint: by shard, just written.
        trainer: of the run, with ``push_to_hub``, on the first rank.
    """
    args, push = trainer.args, trainer.push_in_progress
    busy = push is not None and not push.is_done() and not args.hub_always_push
    if busy or args.hub_strategy == HubStrategy.END:
        return
    # PEFT's card would take the place of the run's, or of the user's own
    listed = {name for name in files_in(checkpoint) if name != "README.md"}
    save_model_folder(checkpoint.parent, lambda staged: write_whole(checkpoint, listed, staged))


def write_whole(checkpoint: Path, listed: Collection[str], folder: Path) -> None:
    """Write the files of a whole model into a folder.

    Args:
        checkpoint: by shard, or whole.
        listed: names of its files.
        folder: that exists.
    """
    for name in sorted(name for name in listed if not _OF_A_RUN.fullmatch(name)):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, place)
    if SHARDS not in listed:
        return
    shards = Shards(checkpoint)
    parts = shards.parts(MODEL, listed)
    for file, names in shards.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if file == WEIGHTS:
            groups = [*_plain(names, parts), *_converted(checkpoint, shards.converted, parts)]
            _write_model(folder, groups)
        else:
            write_file(folder / file, *_in_order(_plain(names, parts)))


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors that come together.

    Args:
        entries: of the file.
        read: gives the tensors by their names in the file.
    """

    entries: list[FileEntry]
    read: Callable[[], Mapping[str, Tensor]]


def _plain(names: Mapping[str, str], parts: ShardReader) -> Iterator[_Group]:
    """A group for each tensor that is saved as it is."""
    for key, name in names.items():
        shape, dtype = parts.tensors[name]
        yield _Group([FileEntry(key, shape, dtype)], partial(_one, parts, key, name))


def _one(parts: ShardReader, key: str, name: str) -> dict[str, Tensor]:
    return {key: parts.whole(name)}


def _converted(checkpoint: Path, names: list[str], parts: ShardReader) -> Iterator[_Group]:
    """A group for each layer that is saved in other pieces, as fused experts are."""
    if not names:
        return
    model = _blank_model(checkpoint)

    def layer(name: str) -> str:
        found = _LAYER.match(name)
        return found[1] if found else ""

    def blank(some: Collection[str]) -> dict[str, Tensor]:
        shapes = {name: parts.tensors[name] for name in some}
        made = {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in shapes.items()}
        return saved_form(model, made)

    groups = [list(some) for _, some in groupby(sorted(names), layer)]
    if {key for some in groups for key in blank(some)} != blank(names).keys():
        groups = [names]  # what is saved together lies in several layers
    for some in groups:
        entries = [FileEntry(k, tuple(one.shape), one.dtype) for k, one in blank(some).items()]
        if entries:  # a table of positions that is computed, as Marian's, is in no file
            yield _Group(entries, partial(_as_saved, model, parts, some))


def _as_saved(model: nn.Module, parts: ShardReader, names: list[str]) -> dict[str, Tensor]:
    return saved_form(model, {name: parts.whole(name) for name in names})


def _blank_model(checkpoint: Path) -> nn.Module:
    """A model without weights, which knows in what pieces its kind is saved."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    kind: Any = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise SetupError(
            "CP524",
            f"{checkpoint} holds a {config.model_type} model in pieces that this release of "
            "transformers does not know how to put together.",
        )
    with torch.device("meta"):
        model: nn.Module = kind(config)
    return model


def _write_model(folder: Path, groups: list[_Group]) -> None:
    """A model's weights in one file, or in several with an index."""
    files: list[list[_Group]] = [[]]
    size = 0
    for group in groups:
        more = sum(entry.size for entry in group.entries)
        if size and size + more > LARGEST:
            files.append([])
            size = 0
        files[-1].append(group)
        size += more
    if len(files) == 1:
        write_file(folder / WEIGHTS, *_in_order(files[0]))
        return
    places: dict[str, str] = {}
    for number, some in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_file(folder / name, *_in_order(some))
        places |= {entry.name: name for group in some for entry in group.entries}
    total = sum(entry.size for group in groups for entry in group.entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(
        json.dumps(index, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )


def _in_order(
    groups: Collection[_Group] | Iterator[_Group],
) -> tuple[list[FileEntry], Iterator[Tensor]]:
    """Entries of a file and, in the same order, their tensors."""
    # as safetensors does it: widest first, so that every tensor is aligned
    ordered = sorted(groups, key=lambda g: (-g.entries[0].dtype.itemsize, g.entries[0].name))
    entries = [entry for group in ordered for entry in group.entries]

    def tensors() -> Iterator[Tensor]:
        for group in ordered:
            found = group.read()
            yield from (found[entry.name] for entry in group.entries)

    return entries, tensors()


def write_file(path: Path, entries: Collection[FileEntry], tensors: Iterator[Tensor]) -> None:
    """Write a file of safetensors, one tensor at a time.

    Args:
        path: of the file.
        entries: what it holds, in order.
        tensors: in the same order.

    Raises:
        OSError: where the disk refuses.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.size
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry, tensor in zip(entries, tensors, strict=True):
            if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
                raise ValueError(f"{entry.name} is {tuple(tensor.shape)} {tensor.dtype}")
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)
