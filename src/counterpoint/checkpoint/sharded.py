"""The parts of a checkpoint by shard as a run has them: weights and optimizer, by name.

Every tensor is saved once, by its first name: one that is tied has several. A checkpoint that was
written whole is read into shards, and one by shard into a model that is whole on every rank, so
that a run resumes under another engine.

Not here: how parts are written and read (``shards``), a whole model of them (``consolidate``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.checkpoint.manifest import SHARDS
from counterpoint.checkpoint.shards import (
    Shape,
    ShardReader,
    refuse_incomplete,
    span_of,
    write_part,
)
from counterpoint.checkpoint.tree import (
    TENSOR,
    put_together,
    read_content,
    read_tree,
    refuse_unwritable,
    taken_apart,
    write_content,
    write_tree,
)
from counterpoint.checkpoint.weights import (
    BESIDE,
    WEIGHTS,
    adapter_file,
    adapter_names,
    first_names,
    is_adapted,
    load_weights,
    misfit,
    unconverted,
    weight_files,
    whole_weights,
    write_beside,
)
from counterpoint.errors import SetupError
from counterpoint.model_seams import left_out_of_files
from counterpoint.run_schema import list_of, mapping_of, record, whole
from counterpoint.run_schema import text as words
from counterpoint.strict import strict_json
from counterpoint.tensor_parts import is_sharded, local_part

MODEL, OPTIMIZER = "model", "optimizer"
"""Folders of the parts of each."""

_TENSORS = mapping_of(record(shape=list_of(whole), dtype=words))
CONTENT = record(
    model=_TENSORS,
    optimizer=_TENSORS,
    files=mapping_of(mapping_of(words)),
    converted=list_of(words),
)
"""What ``shards.json`` holds: the tensors of the parts, and where they go in whole files."""


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by first names: all, or its adapters and what trains.

    Args:
        model: unwrapped, its weights at rest.
    """
    first = first_names(model)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if first.get(name, name) == name and isinstance(tensor, Tensor)
    }
    if not is_adapted(model):
        return state
    held = {first.get(n, n) for names in adapter_names(model).values() for n in names.values()}
    held |= {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: tensor for name, tensor in state.items() if name in held}


def write_states(
    folder: Path, model: nn.Module, optimizer: Mapping[str, Any] | None, *, by_shard: bool
) -> None:
    """Write what this rank does of a run's weights and optimizer; it meets no other.

    Args:
        folder: where a checkpoint is staged.
        model: unwrapped, its weights at rest.
        optimizer: of ``named_state``; None where only the model is saved.
        by_shard: every rank writes what it holds; else the first one writes the optimizer, and
            the weights that the model's own files leave out.

    Raises:
        SetupError: CP517 for a state that cannot be written.
        OSError: where the disk refuses.
    """
    if by_shard:
        write_shards(folder, model, optimizer)
    elif optimizer is not None:
        write_beside(folder, model)
        write_tree(folder, OPTIMIZER, optimizer)


def write_shards(folder: Path, model: nn.Module, optimizer: Mapping[str, Any] | None) -> None:
    """Write what this rank holds of a run's weights and optimizer; it meets no other.

    Args:
        folder: where a checkpoint is staged; the first rank writes ``shards.json`` there.
        model: unwrapped, its weights at rest.
        optimizer: of ``named_state``; None where only the model is saved.

    Raises:
        SetupError: CP517 for a state that cannot be written by shard.
        OSError: where the disk refuses.
    """
    weights = saved_tensors(model)
    _refuse_own_layouts(model, optimizer or {})
    content, state = taken_apart(optimizer or {}, sharded=True)
    write_part(folder / MODEL, weights)
    write_part(folder / OPTIMIZER, state)
    if ranks.rank():
        return
    if optimizer is not None:
        write_content(folder, OPTIMIZER, content)
    files, converted = _whole_files(model, weights)
    described = {
        MODEL: _described(weights),
        OPTIMIZER: _described(state),
        "files": files,
        "converted": converted,
    }
    (folder / SHARDS).write_text(strict_json(described, indent=1) + "\n", encoding="utf-8")


def _refuse_own_layouts(model: nn.Module, optimizer: Mapping[str, Any]) -> None:
    """Refuse what an optimizer keeps of a shard in a form of its own: nobody could cut it anew."""
    weights = dict(model.named_parameters())
    for name, kept in optimizer.get("state", {}).items():
        for key, value in kept.items():
            whole_here = isinstance(value, Tensor) and not is_sharded(value) and value.numel() > 1
            if whole_here and name in weights and is_sharded(weights[name]):
                raise refuse_unwritable(value, f"state.{name}.{key}", "kept for a part of a weight")


def _whole_files(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The files of a whole model: file -> name in it -> tensor; and tensors that are converted."""
    if not is_adapted(model):
        names, converted = unconverted(model, weights)
        return {WEIGHTS: names}, converted
    first = first_names(model)
    files = {
        adapter_file(adapter): {key: first.get(name, name) for key, name in names.items()}
        for adapter, names in adapter_names(model).items()
    }
    held = {name for names in files.values() for name in names.values()}
    if beside := {name: name for name in weights if name not in held}:
        files[BESIDE] = beside
    return files, []


def _described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": list(one.shape), "dtype": str(one.dtype).removeprefix("torch.")}
        for name, one in tensors.items()
    }


class Shards:
    """What ``shards.json`` says.

    Args:
        folder: of a verified checkpoint, or where a model is made whole.

    Raises:
        SetupError: CP512 for one that says nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            found = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
            CONTENT(found, SHARDS)
            self.files: dict[str, dict[str, str]] = found["files"]
            self.converted: list[str] = found["converted"]
            self.shapes: dict[str, dict[str, Shape]] = {
                kind: {name: tuple(one["shape"]) for name, one in found[kind].items()}
                for kind in (MODEL, OPTIMIZER)
            }
            self.dtypes: dict[str, torch.dtype] = {
                name: _dtype(one["dtype"]) for name, one in found[MODEL].items()
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SetupError("CP512", f"{folder / SHARDS} is damaged: {error!r}.") from error

    def parts(self, kind: str, listed: Collection[str]) -> ShardReader:
        """The parts of the model or of the optimizer, none of which is missing.

        Args:
            kind: "model" or "optimizer".
            listed: names of the checkpoint's files.

        Raises:
            SetupError: CP524.
        """
        names = sorted(name for name in listed if name.startswith(f"{kind}/"))
        found = ShardReader([self.folder / name for name in names])
        refuse_incomplete(self.folder, found, self.shapes[kind])
        return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is no precision")
    return found


def load_saved(model: nn.Module, folder: Path, listed: Collection[str]) -> None:
    """Put a checkpoint's weights into a model, in place, whoever has written it.

    Args:
        model: unwrapped, its weights at rest.
        folder: the checkpoint.
        listed: names of its files, of a manifest that was verified; nothing else is opened.

    Raises:
        SetupError: CP514 for a tensor that is missing on either side, or of another shape or
            precision; CP524 for parts that do not make up a tensor.
    """
    way = load_shards if _in_parts(model, listed) else load_weights
    way(model, folder, listed)


def _in_parts(model: nn.Module, listed: Collection[str]) -> bool:
    """Whether the checkpoint lies in parts, or the model does."""
    return SHARDS in listed or any(map(is_sharded, model.parameters()))


def load_shards(model: nn.Module, folder: Path, listed: Collection[str]) -> None:
    """Put a checkpoint's weights into a model, in place: each rank what it holds of it.

    Args:
        model: unwrapped, its weights at rest; sharded or whole.
        folder: the checkpoint, by shard or whole.
        listed: names of its files, of a manifest that was verified; nothing else is opened.

    Raises:
        SetupError: CP514 for a tensor that is missing on either side, or of another shape or
            precision; CP524 for parts that do not make up a tensor.
    """
    live = saved_tensors(model)
    if SHARDS in listed:
        shards = Shards(folder)
        _refuse_misfit(
            folder, {n: (shards.shapes[MODEL][n], d) for n, d in shards.dtypes.items()}, live
        )
        shards.parts(MODEL, listed).read(live)
    elif is_adapted(model):
        first, missing = first_names(model), set(live)
        for adapter, names in adapter_names(model).items():
            into = {key: live[first.get(name, name)] for key, name in names.items()}
            missing -= {first.get(name, name) for name in names.values()}
            _read(folder, [adapter_file(adapter)], into, listed)
        if missing or BESIDE in listed:
            _read(folder, [BESIDE], {name: live[name] for name in missing}, listed)
    else:
        files = [path.name for path in weight_files(folder, listed)]
        parts = ShardReader([folder / name for name in files])
        if parts.tensors.keys() <= model.state_dict().keys():
            first = first_names(model)
            into = {n: live[first.get(n, n)] for n in parts.tensors}
            lacking = live.keys() - {first.get(n, n) for n in parts.tensors}
            lacking -= {*left_out_of_files(model)}  # computed, and in no file
            if lacking:
                raise misfit(folder, "too few for the model, which has", sorted(lacking))
            _read(folder, files, into, listed)
        else:
            _cut(whole_weights(model, folder), live)


def _read(folder: Path, files: list[str], into: dict[str, Tensor], listed: Collection[str]) -> None:
    if absent := [name for name in files if name not in listed]:
        raise SetupError("CP514", f"{folder} holds no {absent[0]}, which the model needs.")
    parts = ShardReader([folder / name for name in files])
    _refuse_misfit(folder, parts.tensors, into)
    parts.read(into)


def _refuse_misfit(
    folder: Path, saved: Mapping[str, tuple[Shape, torch.dtype]], live: Mapping[str, Tensor]
) -> None:
    def of(name: str) -> tuple[Shape, torch.dtype] | None:
        return (tuple(live[name].shape), live[name].dtype) if name in live else None

    wrong = [
        f"{name} ({shape} {dtype})"
        for name, (shape, dtype) in saved.items()
        if of(name) != (shape, dtype)
    ]
    if wrong:
        raise misfit(folder, "that the model does not have so", wrong)
    if lacking := sorted(live.keys() - saved.keys()):
        raise misfit(folder, "too few: the model has more", lacking)


def _cut(whole_ones: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Whole tensors into what this rank holds of those of the same name."""
    with torch.no_grad():
        for name, into in live.items():
            found = whole_ones[name]
            local_part(into.detach()).copy_(found[span_of(into)] if found.dim() else found)


def read_optimizer(folder: Path, model: nn.Module, listed: Collection[str]) -> Any:
    """The tree of an optimizer's state; of a sharded weight this rank's part.

    Args:
        folder: the checkpoint, by shard or whole.
        model: unwrapped, its weights at rest.
        listed: names of its files, of a manifest that was verified; nothing else is opened.

    Raises:
        SetupError: CP512 for files that are no tree; CP524 for parts that do not make up a tensor.
    """
    if not _in_parts(model, listed):
        return read_tree(folder, OPTIMIZER)
    content = read_content(folder, OPTIMIZER)
    if SHARDS in listed:
        parts = Shards(folder).parts(OPTIMIZER, listed)
    else:
        parts = ShardReader(
            [folder / name for name in (f"{OPTIMIZER}.safetensors",) if name in listed]
        )
    weights = dict(model.named_parameters())
    into = dict(_places(content, weights, parts))
    parts.read(into)
    return put_together(folder, OPTIMIZER, content, into)


def _places(
    content: Any, weights: Mapping[str, Tensor], parts: ShardReader
) -> Iterator[tuple[str, Tensor]]:
    """A tensor for each of a state's: cut as the weight that it is kept for, or whole."""
    like: dict[str, Tensor] = {}
    states = content.get("state") if isinstance(content, dict) else None
    for name, kept in states.items() if isinstance(states, dict) else ():
        for value in kept.values() if isinstance(kept, dict) and name in weights else ():
            if isinstance(value, dict) and isinstance(value.get(TENSOR), str):
                like[value[TENSOR]] = weights[name].detach()
    for place, (shape, dtype) in parts.tensors.items():
        weight = like.get(place)
        if weight is not None and is_sharded(weight) and tuple(weight.shape) == shape:
            yield place, torch.empty_like(weight, dtype=dtype)
        else:
            yield place, torch.empty(shape, dtype=dtype)
