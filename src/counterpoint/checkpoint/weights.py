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
from counterpoint.model_seams import class_of, left_out_of_files, saves_embeddings
from counterpoint.run_schema import mapping_of, record
from counterpoint.run_schema import text as words
from counterpoint.tensor_parts import is_plain

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
        if parameter.requires_grad and name not in held
    }
    if beside:
        with plain_io_errors():
            save_file(beside, folder / BESIDE, metadata={"format": "pt"})


def held_by_adapters(model: nn.Module) -> set[str]:
    """The tensors that the files of a model's adapters hold, by all of their names in the model.

    Args:
        model: unwrapped, with PEFT.
    """
    first = first_names(model)
    names = {name for held in adapter_names(model).values() for name in held.values()}
    firsts = {first.get(name, name) for name in names}
    return names | {name for name, one in first.items() if one in firsts}


def adapter_names(model: nn.Module) -> dict[str, dict[str, str]]:
    """What the file of each adapter holds: adapter -> name in the file -> name in the model.

    PEFT is given numbers in place of the weights, and says under which names it would save them.
    What it takes from the model by itself, as a prompt that is learnt, is known by its memory.

    Args:
        model: unwrapped, with PEFT.
    """
    return {
        adapter: {key: name for key, name in names.items() if name is not None}
        for adapter, names in _names_asked(model).items()
    }


def refuse_computed(model: nn.Module) -> None:
    """Refuse an adapter whose file holds what no tensor of the model is: it has no shards.

    Args:
        model: unwrapped.

    Raises:
        SetupError: CP523.
    """
    for adapter, names in _names_asked(model).items() if is_adapted(model) else ():
        if made := sorted(key for key, name in names.items() if name is None):
            raise SetupError(
                "CP523",
                f"PEFT computes {made[0]} of the adapter {adapter!r} ({len(made)} such) as it is "
                "saved, from weights of which each rank holds a part, so that nothing was trained. "
                "Choose another kind of adapter, as LoRA, or train it without shards.",
            )


def _names_asked(model: nn.Module) -> dict[str, dict[str, str | None]]:
    """As ``adapter_names``, with None for what PEFT computes."""
    every = list(model.state_dict())
    at = {
        parameter.untyped_storage().data_ptr(): name
        for name, parameter in model.named_parameters()
        if is_plain(parameter)  # of other kinds, some have no memory of their own
    }
    found: dict[str, dict[str, str | None]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is saved; nothing is, here
        for adapter in _adapters(model):
            numbers = {name: torch.tensor([number]) for number, name in enumerate(every)}
            state = _adapter_state(model, adapter, numbers)
            # of a model that was loaded in shards PEFT gives views of them
            given = {one.untyped_storage().data_ptr(): name for name, one in numbers.items()}
            places = {key: one.untyped_storage().data_ptr() for key, one in state.items()}
            found[adapter] = {key: given.get(place, at.get(place)) for key, place in places.items()}
    return found


def adapter_file(name: str) -> str:
    """The file of an adapter's weights, below the folder where the model is saved."""
    return ADAPTER if name == "default" else f"{name}/{ADAPTER}"


def first_names(model: nn.Module) -> dict[str, str]:
    """The first name of every parameter, by each of its names: one that is tied has several.

    Args:
        model: unwrapped.
    """
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in every}


def unconverted(model: nn.Module, weights: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """How transformers would name a model's weights as it saves them: name in the file -> name.

    Args:
        model: unwrapped, without an adapter.
        weights: names of its tensors that are saved.

    Returns:
        The names; and those weights that are saved in other pieces, as fused experts are.
    """
    state = model.state_dict()
    blank = {name: torch.empty(state[name].shape, device="meta") for name in sorted(weights)}
    names = {id(tensor): name for name, tensor in blank.items()}
    found = saved_form(model, blank)
    mapped = {key: names[id(tensor)] for key, tensor in found.items() if id(tensor) in names}
    return mapped, sorted(blank.keys() - set(mapped.values()))


def saved_form(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names and in the pieces in which transformers saves a model of this kind.

    Args:
        model: unwrapped; may be on "meta".
        state: some of its weights, by their names in the model.
    """
    if not hasattr(model, "save_pretrained"):
        return state
    from transformers.core_model_loading import revert_weight_conversion

    own: Any = model
    left_out = left_out_of_files(own)
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    found: dict[str, Tensor] = revert_weight_conversion(own, kept)
    return found


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
    files = weight_files(folder, listed)
    names = {name for file in files for name in _names_in(file)}
    if names <= live.keys() and _rest_is_tied(live, names):
        for file in files:
            _copy(load_file(file), live, folder)
        return
    _copy(whole_weights(model, folder), live, folder)


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
        raise misfit(folder, "that the model does not have so", wrong)
    with torch.no_grad():
        for name, tensor in saved.items():
            live[name].copy_(tensor)


def weight_files(folder: Path, listed: Collection[str]) -> list[Path]:
    """The files of a whole model's weights.

    Args:
        folder: the checkpoint.
        listed: names of its files.

    Raises:
        SetupError: CP512, CP514 or CP521 where there are none, or not those that an index names.
    """
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


def whole_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The files by the names and pieces of the live model, as its own class reads them.

    Args:
        model: unwrapped, without an adapter.
        folder: the checkpoint.

    Raises:
        SetupError: CP514 for tensors that find no place, or places without one.
    """
    own: Any = model
    live = model.state_dict()
    kinds = {tensor.dtype for tensor in live.values() if tensor.is_floating_point()}
    # the widest holds all others exactly, and each goes back to its own below
    widest = reduce(torch.promote_types, kinds, torch.float32)
    loaded, report = class_of(own).from_pretrained(
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
        raise misfit(folder, "that find no place in the model, or no tensor", lost)
    return {name: tensor.to(live[name].dtype) for name, tensor in saved.items()}


# PEFT


def _adapters(model: nn.Module) -> list[str]:
    config: Any = model.peft_config
    return list(config)


def _adapter_state(
    model: nn.Module, name: str, given: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state: dict[str, Any] = get_peft_model_state_dict(
        model,
        state_dict=given,
        adapter_name=name,
        save_embedding_layers=saves_embeddings(model),
    )
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _load_adapters(model: nn.Module, folder: Path, listed: Collection[str]) -> None:
    from peft import set_peft_model_state_dict

    adapters = {}
    for name in _adapters(model):
        file = adapter_file(name)
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
            raise misfit(folder, "that do not fit the adapter", wrong)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """To compare NaN too."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def misfit(folder: Path, what: str, names: list[str]) -> SetupError:
    """The error of tensors that do not fit the model.

    Args:
        folder: of the checkpoint.
        what: is wrong with them, in words that follow their number.
        names: of the tensors.
    """
    more = ", ..." if len(names) > NAMED else ""
    return SetupError(
        "CP514",
        f"{folder} holds {len(names)} tensors {what}: {', '.join(sorted(names)[:NAMED])}{more}.",
    )
