"""A checkpoint by shard: each rank writes its own parts of the tensors, and reads those it needs.

    shards.json             the tensors that the parts make up: shape, precision, how they are saved
    model/shard-00002-...   what the second rank holds of the model
    optimizer/shard-0000... and of the optimizer's state, by the names of its places in the tree

torch's distributed checkpoints (DCP) give the format, which is plain safetensors with the place of
each part in their metadata, and the cutting anew for other ranks. They are asked for nothing else:

1. Their own ``.metadata`` is a pickle, which the writer of safetensors does not make; values that
   are no tensors would be pickled too, and are never given to it.
2. Ranks plan alone. Who writes what follows from the tensor (``writes``), so that nothing is
   exchanged before the digests of the files are.
3. They read whatever lies in a folder; here the files of a verified manifest, and no other.

Not here: verifying (``together``), trees and names of adapters (``sharded``), whole models
(``consolidate``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from counterpoint import ranks
from counterpoint.checkpoint.tree import plain_io_errors
from counterpoint.errors import SetupError
from counterpoint.tensor_parts import is_sharded, local_part

FILE_SIZE = 1 << 30
"""Bytes of a file about which the next one begins: a rank holds one more copy of so much."""

Shape = tuple[int, ...]


def writes(tensor: Tensor) -> bool:
    """Whether this rank writes what it holds of a tensor.

    Of a tensor that all ranks have, the first one does; of copies of a part, the rank that holds
    the first copy; of a part without entries, none.

    Args:
        tensor: of any shape and precision; ``DTensor`` where ranks hold parts.
    """
    if not tensor.numel():
        return False
    if not is_sharded(tensor):
        return ranks.rank() == 0
    return first_copy(tensor) and local_part(tensor).numel() > 0


def first_copy(tensor: Tensor) -> bool:
    """Whether this rank has the first copy of a part, where ranks hold copies (HSDP).

    Args:
        tensor: a ``DTensor``.
    """
    given: Any = tensor
    place = given.device_mesh.get_coordinate()
    if place is None:
        return False
    return not any(
        n for n, kind in zip(place, given.placements, strict=True) if not kind.is_shard()
    )


def span_of(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part of a tensor lies in it."""
    if not is_sharded(tensor):
        return tuple(slice(0, size) for size in tensor.shape)
    given: Any = tensor
    (chunk,) = given.__create_chunk_list__()
    return tuple(
        slice(begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True)
    )


def write_part(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what this rank holds of some tensors; it meets no other.

    Args:
        folder: for these tensors alone; it is made.
        tensors: by name, the same names on every rank.

    Raises:
        OSError: where the disk refuses.
    """
    mine = {name: tensor.detach() for name, tensor in tensors.items() if writes(tensor)}
    if not mine:
        return
    writer = _Writer(str(folder), _files_for(mine), save_distributed=True)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    with plain_io_errors(), _alone():
        save(mine, storage_writer=writer, planner=planner, no_dist=True)


def _files_for(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file of this rank a tensor goes to, from 1, in the order of names."""
    places, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        more = local_part(tensor).numel() * tensor.element_size()
        if size and size + more > FILE_SIZE:
            number, size = number + 1, 0
        places[name] = number
        size += more
    return places


class _Writer(HuggingFaceStorageWriter):
    """Names files by the rank that writes them, though each plans alone."""

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        mine = {"shard_index": ranks.rank() + 1}
        made = super().prepare_global_plan(plans)
        return [replace(plan, storage_data={**plan.storage_data, **mine}) for plan in made]


class ShardReader(HuggingFaceStorageReader):
    """Tensors that lie in safetensors files, whole or in parts.

    Args:
        files: of a verified checkpoint; no other is opened.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(str(files[0].parent) if files else ".")
        self.fs = _Listed(files)
        self._found: Metadata | None = None

    def read_metadata(self) -> Metadata:
        """What the files hold; read once."""
        if self._found is None:
            self._found = super().read_metadata()
        return self._found

    def reset(self, checkpoint_id: Any = None) -> None:
        """Stay with the files."""

    @property
    def tensors(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and precision of each tensor, as far as its parts reach."""
        found = self.read_metadata().state_dict_metadata
        return {
            name: (tuple(one.size), one.properties.dtype)
            for name, one in found.items()
            if isinstance(one, TensorStorageMetadata)
        }

    def entries(self, name: str) -> int:
        """How many entries the parts of a tensor have together; 0 where there is none."""
        one = self.read_metadata().state_dict_metadata.get(name)
        chunks = one.chunks if isinstance(one, TensorStorageMetadata) else []
        return sum(chunk.sizes.numel() for chunk in chunks)

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Read into tensors that are there, of the same shapes and precisions; meets no other rank.

        Args:
            into: by name; of a ``DTensor`` this rank's part is read, however the files are cut.
        """
        mine = {
            name: tensor.detach() for name, tensor in into.items() if local_part(tensor).numel()
        }
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        if mine:
            with torch.no_grad(), plain_io_errors(), _alone():
                load(mine, storage_reader=self, planner=planner, no_dist=True)

    def whole(self, name: str) -> Tensor:
        """One tensor, put together on the CPU."""
        shape, dtype = self.tensors[name]
        found = torch.empty(shape, dtype=dtype)
        self.read({name: found})
        return found


class _Listed(FileSystem):
    """A file system with some files in it."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [str(path) for path in files]

    def ls(self, path: Any) -> list[str]:
        return self._files


@contextmanager
def _alone() -> Iterator[None]:
    """DCP on this rank alone: without its word on it, and with errors as they were raised."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def refuse_incomplete(folder: Path, parts: ShardReader, expected: Mapping[str, Shape]) -> None:
    """Refuse files that do not make up the tensors that they should.

    Args:
        folder: of the checkpoint, for the message.
        parts: that lie there.
        expected: shape of every tensor.

    Raises:
        SetupError: CP524 for a tensor that is missing, or has a gap.
    """
    for name, shape in expected.items():
        entries, there = torch.Size(shape).numel(), parts.entries(name)
        if there != entries or (entries and parts.tensors[name][0] != shape):
            raise SetupError(
                "CP524",
                f"the shards in {folder} hold {there:,} of the {entries:,} entries of {name}. "
                "Resume from an earlier checkpoint.",
            )
