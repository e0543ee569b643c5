"""A model's weights from a checkpoint into the model that is there, every name accounted for.

transformers writes some weights under other names and in other pieces than the live model has them
(the fused experts of a mixture, for one), and its own resuming loads by plain name and skips what
does not fit: such weights are lost with no more than a warning. Here the files must give every
tensor of the model, to the bit, or it is an error.

1. ``model.safetensors``, or its shards: straight into the model where the names are its own, else
   through the model class's own ``from_pretrained``.
2. PEFT adapters, each through PEFT.
3. ``beside.safetensors``: what trains and belongs to neither, such as a norm unfrozen by hand.

Not here: writing 1 and 2 (``save_pretrained``), and whether files are whole (``manifest``).
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from counterpoint.checkpoint.tree import plain_io_errors
from counterpoint.errors import SetupError
from counterpoint.run_schema import mapping_of, record
from counterpoint.run_schema import text as words

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
BESIDE = "beside.safetensors"

NAMED = 3
"""Most tensors that a message names."""


def write_beside(folder: Path, model: nn.Module) -> None:
    """Write the weights that train and that an adapter's own files leave out, if there are any.

    Args:
        folder: where the model was saved.
        model: unwrapped; without PEFT its own files hold everything.

    Raises:
        OSError: where the disk refuses.
    """
    if not is_adapted(model):
        return
    held = held_by_adapters(model)
    beside = {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() not in held
    }
    if beside:
        with plain_io_errors():
            save_file(beside, folder / BESIDE, metadata={"format": "pt"})


def held_by_adapters(model: nn.Module) -> set[int]:
    """Where in memory the tensors lie that the files of a model's adapters hold.

    Args:
        model: unwrapped, with PEFT.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is saved; nothing is, here
        states = [_adapter_state(model, name) for name in _adapters(model)]
    return {tensor.untyped_storage().data_ptr() for state in states for tensor in state.values()}


def load_weights(model: nn.Module, folder: Path, listed: Collection[str]) -> None:
    """Put a checkpoint's weights into a model, in place.

    Args:
        model: unwrapped, of the same architecture and precision.
        folder: the checkpoint.
        listed: names of its files, of a manifest that was verified; nothing else is opened.

    Raises:
        SetupError: CP514 for a tensor that is missing on either side, or of another shape or
            precision; each named.
    """
    if is_adapted(model):
        _load_adapters(model, folder, listed)
        return
    live = model.state_dict()
    files = _weight_files(folder, listed)
    names = {name for file in files for name in _names_in(file)}
    if names <= live.keys() and _rest_is_tied(live, names):
        for file in files:
            _copy(load_file(file), live, folder)
        return
    _copy(_converted(model, folder), live, folder)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is wrapped by PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "base_model")


PLACES = record(weight_map=mapping_of(words))
"""Of an index of shards: tensor -> file."""


def _copy(saved: dict[str, Tensor], live: dict[str, Any], folder: Path) -> None:
    """Tensors into those of the same name, which must be alike."""
    wrong = [
        f"{name} ({tuple(tensor.shape)} {tensor.dtype})"
        for name, tensor in saved.items()
        if name not in live or (live[name].shape, live[name].dtype) != (tensor.shape, tensor.dtype)
    ]
    if wrong:
        raise _misfit(folder, "that the model does not have so", wrong)
    with torch.no_grad():
        for name, tensor in saved.items():
            live[name].copy_(tensor)


def _weight_files(folder: Path, listed: Collection[str]) -> list[Path]:
    if WEIGHTS in listed:
        return [folder / WEIGHTS]
    if INDEX not in listed:
        raise SetupError(
            "CP514", f"{folder} holds no {WEIGHTS}: it is a checkpoint of an adapter, or of none."
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        PLACES(index, INDEX)
        names = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, RecursionError) as error:
        raise SetupError("CP512", f"{folder / INDEX} is no index of weights: {error!r}.") from error
    strange = [name for name in names if name not in listed]
    if strange:
        raise SetupError(
            "CP521", f"{folder / INDEX} names {strange[0]}, which the checkpoint does not list."
        )
    return [folder / name for name in names]


def _names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _rest_is_tied(live: dict[str, Tensor], names: set[str]) -> bool:
    """Whether every tensor without a name in the files is another name of one that has."""
    held = {live[name].data_ptr() for name in names}
    return all(tensor.data_ptr() in held for name, tensor in live.items() if name not in names)


def _converted(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The files by the names and pieces of the live model, as its own class reads them."""
    own: Any = model
    live = model.state_dict()
    kinds = {tensor.dtype for tensor in live.values() if tensor.is_floating_point()}
    # the widest holds all others exactly, and each goes back to its own below
    widest = reduce(torch.promote_types, kinds, torch.float32)
    loaded, report = type(own).from_pretrained(
        folder,
        config=copy.deepcopy(own.config),
        dtype=widest,
        use_safetensors=True,
        output_loading_info=True,
    )
    lost = [
        str(name)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in report[kind]
    ]
    saved = loaded.state_dict()
    lost += sorted(live.keys() ^ saved.keys())
    if lost:
        raise _misfit(folder, "that find no place in the model, or no tensor", lost)
    return {name: tensor.to(live[name].dtype) for name, tensor in saved.items()}


# PEFT


def _adapters(model: nn.Module) -> list[str]:
    config: Any = model.peft_config
    return list(config)


def _adapter_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=name)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _load_adapters(model: nn.Module, folder: Path, listed: Collection[str]) -> None:
    from peft import set_peft_model_state_dict

    adapters = {}
    for name in _adapters(model):
        file = ADAPTER if name == "default" else f"{name}/{ADAPTER}"
        if file not in listed:
            raise SetupError("CP514", f"{folder} holds no {ADAPTER} of an adapter named {name!r}.")
        adapters[name] = load_file(folder / file)
        try:
            set_peft_model_state_dict(model, dict(adapters[name]), adapter_name=name)
        except (RuntimeError, KeyError, ValueError) as error:
            raise SetupError(
                "CP514", f"the adapter in {folder} does not fit the model's: {error}"
            ) from error
    if BESIDE in listed:
        _copy(load_file(folder / BESIDE), dict(model.named_parameters()), folder)
    # PEFT skips what it finds no place for; so what is there now must be what was saved
    for name, saved in adapters.items():
        live = {key: value.cpu() for key, value in _adapter_state(model, name).items()}
        wrong = sorted(live.keys() ^ saved.keys())
        wrong += [key for key in saved if key in live and not _same(saved[key], live[key])]
        if wrong:
            raise _misfit(folder, "that do not fit the adapter", wrong)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """To compare NaN too."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _misfit(folder: Path, what: str, names: list[str]) -> SetupError:
    more = ", ..." if len(names) > NAMED else ""
    return SetupError(
        "CP514",
        f"{folder} holds {len(names)} tensors {what}: {', '.join(sorted(names)[:NAMED])}{more}.",
    )
