"""What of a model trains: parts that are frozen, and why nothing would, and what to do about it.

Not here: wrapping a model with an adapter (``preparing``), adapters' folders (``adapters``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from counterpoint.errors import ConfigError, ModelError
from counterpoint.forward.kept_features import keep_features
from counterpoint.forward.seeing import PARTS_THAT_SEE, weights_that_see
from counterpoint.forward.sights import sight_of
from counterpoint.model_seams import class_of
from counterpoint.models.vocabulary import read_instead

IN_THE_CACHE = {"PREFIX_TUNING", "CARTRIDGE"}
"""Kinds of adapters, as PEFT names them, that need a cache of keys and values."""

UNSUPPORTED = {
    "MULTITASK_PROMPT_TUNING": "it wants to be told the task of each row",
    "POLY": "it wants to be told the task of each row",
    "SHADOW": "it hands something other than tensors from layer to layer",
}
"""Kinds of adapters that cannot train here, and why."""

OF_ADAPTERS = "the model is a PeftModel, and "


def check_trainable(model: nn.Module) -> None:
    """Refuse a model of which no weight would move.

    Args:
        model: plain or PEFT-wrapped, as it would train.

    Raises:
        ModelError: CP305, with the remedy for the way it came about.
    """
    adapters: Any = getattr(model, "peft_config", None)
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if isinstance(adapters, dict) and adapters:
        reason = _of_adapters(model, list(adapters), trains)
    else:
        reason = None if trains else _of_plain(model)
    if reason:
        raise ModelError("CP305", reason)


def freeze_computed(model: nn.Module) -> None:
    """Freeze tables of positions that a model computes, as Marian's and PEGASUS's.

    Their forward has no gradient, and Marian's files leave them out. transformers loads them as if
    they trained, so that ranks under DDP would wait for a gradient that never comes.

    Args:
        model: plain or PEFT-wrapped.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and hasattr(module, "create_weight"):
            module.weight.requires_grad_(False)


def check_kind(peft_config: Any) -> None:
    """Refuse kinds of adapters that would fail in the first step.

    Args:
        peft_config: a ``peft.PeftConfig``.

    Raises:
        ModelError: CP307.
    """
    reason = UNSUPPORTED.get(_kind(peft_config))
    if reason:
        raise ModelError(
            "CP307",
            f"{type(peft_config).__name__} cannot be trained here: {reason}. Choose another kind "
            "of adapter, such as LoRA.",
        )


def check_parameters(model: nn.Module, peft_config: Any) -> None:
    """Refuse names of weights that a model does not have: PEFT passes over them.

    Args:
        model: not adapted yet.
        peft_config: a ``peft.PeftConfig``.

    Raises:
        ModelError: CP307, with the weights of experts that there are.
    """
    wanted = getattr(peft_config, "target_parameters", None) or ()
    weights = dict(model.named_parameters())
    for name in wanted:
        if any(own == name or own.endswith(f".{name}") for own in weights):
            continue
        # of a layer by its number only what follows that
        several = (re.split(r"\.\d+\.", own)[-1] for own, one in weights.items() if one.dim() == 3)
        found = ", ".join(dict.fromkeys(several))
        raise ModelError(
            "CP307",
            f"the model has no weight whose name ends with {name}. "
            + (f"Its experts have {found}." if found else "It has no experts in one tensor."),
        )


def check_read(model: Any, peft_config: Any) -> None:
    """Refuse an adapter on an embedding that nothing reads: what it holds would never train.

    Args:
        model: of transformers, not adapted yet.
        peft_config: a ``peft.PeftConfig``.

    Raises:
        ModelError: CP307, with the modules that are read in its place.
    """
    if not hasattr(model, "get_input_embeddings"):
        return
    own = model.get_input_embeddings()
    name = next((name for name, one in model.named_modules() if one is own), None)
    instead = [] if name is None else read_instead(model, name)
    lists = (getattr(peft_config, kind, None) for kind in ("modules_to_save", "target_modules"))
    asked = {one for some in lists if isinstance(some, list | set | tuple) for one in some}
    if not instead or asked.isdisjoint(_ends(str(name))):
        return
    raise ModelError(
        "CP307",
        f"nothing of {class_of(model).__name__} reads {name} itself, so that what an adapter keeps "
        f"of it would not train: {' and '.join(instead)} are read, which share its weight. Name "
        f"{instead[0].rpartition('.')[2]}.",
    )


def _ends(name: str) -> list[str]:
    """All ends of a module's name, by which an adapter may name it."""
    parts = name.split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]


def _kind(peft_config: Any) -> str:
    kind: Any = peft_config.peft_type
    return str(getattr(kind, "value", kind))


def check_checkpointing(model: nn.Module, checkpointing: bool) -> None:
    """Refuse adapters that activation checkpointing would leave out.

    Args:
        model: plain or PEFT-wrapped.
        checkpointing: whether activations are to be computed again in the backward pass.

    Raises:
        ModelError: CP314.
    """
    adapters: Any = getattr(model, "peft_config", None)
    if not checkpointing or not isinstance(adapters, dict):
        return
    for config in adapters.values():
        if _kind(config) in IN_THE_CACHE:
            raise ModelError(
                "CP314",
                f"{type(config).__name__} puts what it learns into the cache of keys and values, "
                "which activation checkpointing, the default, does without. Set "
                "gradient_checkpointing=False, or choose LoRA or prompt tuning.",
            )


def _of_plain(model: nn.Module) -> str:
    if getattr(model, "is_quantized", False):
        return (
            "no parameter of the model requires a gradient: its weights are quantised, and only "
            "an adapter can train on them. Pass a peft_config (--lora_r)."
        )
    return (
        "no parameter of the model requires a gradient. Unfreeze some "
        "(model.requires_grad_(True)), or pass a peft_config."
    )


def _of_adapters(model: nn.Module, names: list[str], trains: bool) -> str | None:
    """What keeps adapters from training; None where nothing does."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "merged_adapters")]
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        return (
            f"{OF_ADAPTERS}its adapter {', '.join(merged)} is merged into the weights beneath, so "
            "that it takes no part in the forward pass. Call model.unmerge_adapter() to train it, "
            "or model.merge_and_unload() to train all weights."
        )
    if layers and all(layer.disable_adapters for layer in layers):
        return (
            f"{OF_ADAPTERS}its adapters are disabled. Call "
            "model.base_model.enable_adapter_layers()."
        )
    if trains:
        return None
    active: Any = getattr(model, "active_adapter", names[0])
    named = active if isinstance(active, str) else ", ".join(active)
    others = [name for name in names if name != named]
    also = f" Other adapters: {', '.join(others)}." if others else ""
    return (
        f"{OF_ADAPTERS}no parameter of its adapter {named} requires a gradient. Load it with "
        "PeftModel.from_pretrained(model, folder, is_trainable=True), or call "
        f"model.set_adapter({named!r}) to train it as it is; a peft_config is for models without "
        f"an adapter.{also}"
    )


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze parts of a model that sees: what they say then needs no graph.

    Args:
        model: loaded, plain or with the adapter that a run begins with.
        parts: of ``PARTS_THAT_SEE``.

    Raises:
        ConfigError: CP102 for another name, CP104 for a model that sees nothing.
    """
    config: Any = model.config
    for part in parts:
        if part not in PARTS_THAT_SEE:
            text = f"freeze={part!r} is not one of {', '.join(PARTS_THAT_SEE)}."
            raise ConfigError("CP102", text)
        if sight_of(config) is None:
            raise ConfigError(
                "CP104",
                f"freeze={part!r} has no meaning for {class_of(model).__name__}, which sees no "
                "pictures. Leave it out.",
            )
        for weight in weights_that_see(model, part):
            weight.requires_grad_(False)


def keep_pictures(model: nn.Module, gigabytes: float) -> None:
    """Keep what a frozen tower says of pictures, so that each is looked at once.

    Args:
        model: as it would train.
        gigabytes: that this may take of the host's memory, 1e9 bytes each; 0: nothing is kept.

    Raises:
        ConfigError: CP104 for a model that sees nothing, or that looks at pictures in layers of its
            text (``Sight.crosses``), of which nothing is kept.
        ModelError: CP336 where tower or projector trains.
    """
    config: Any = model.config
    sight = sight_of(config)
    if sight is None or sight.crosses:
        if gigabytes:
            why = "sees no pictures" if sight is None else "looks at them in layers of its text"
            raise ConfigError(
                "CP104",
                f"picture_cache_gb={gigabytes:g} has no meaning for {class_of(model).__name__}, "
                f"which {why}. Leave it out.",
            )
        return
    if gigabytes:
        trains = {
            part: sum(weight.requires_grad for weight in weights_that_see(model, part))
            for part in PARTS_THAT_SEE
        }
        moving = " and ".join(f"{count} of {part}" for part, count in trains.items() if count)
        if moving:
            raise ModelError(
                "CP336",
                f"picture_cache_gb={gigabytes:g} keeps what a frozen tower says of pictures, and "
                f"here it changes: of the model's weights {moving} train. Freeze both (--freeze "
                "vision projector), or leave it out.",
            )
    keep_features(model, int(gigabytes * 1e9))


def left_by_adapters(config: Any) -> str | None:
    """A pattern of the modules that a new adapter leaves out unless they are named; None for none.

    Args:
        config: of a model; None where it is not known.
    """
    sight = sight_of(config)
    if sight is None:
        return None
    parts = "|".join(map(re.escape, (*sight.tower, *sight.projector)))
    return rf"(.*\.)?({parts})(\..*)?"  # a projector may be a layer itself
