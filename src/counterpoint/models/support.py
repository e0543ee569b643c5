"""What trains how: kinds of models that see, by layout, engine and adapter, as the code decides it.

Nothing is listed here by hand. Each kind's own class is built from its default configuration, two
layers deep and without weights, and the layouts and engines are asked what they ask of any model.

Not here: the answers for a model of a run, which may differ (dropout, another attention): they are
given when it is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from counterpoint.engine.table import ENGINES
from counterpoint.forward.sights import SIGHTS
from counterpoint.models.family import family_of
from counterpoint.models.trainable import left_by_adapters

DEPTHS = ("num_hidden_layers", "num_global_layers", "depth")
"""Fields of configurations that say how many layers there are."""

FEW = 2
"""Layers of what is built: enough for one that looks at pictures to be asked like all others."""

ADAPTER = "LoRA"


@dataclass(frozen=True, slots=True)
class Support:
    """How models of a kind that sees can be trained.

    Args:
        kind: of configuration.
        why_not: layout's name, engine's name or ``ADAPTER`` -> what forbids it, in words; None
            where it can be had.
    """

    kind: str
    why_not: Mapping[str, str | None]


def support_columns() -> tuple[str, ...]:
    """What the answers of all kinds are about: layouts, engines, adapters."""
    layouts = dict.fromkeys(one.name for kind in SIGHTS for one in _family(kind).layouts)
    return (*layouts, *ENGINES, ADAPTER)


def support() -> list[Support]:
    """The answers for each kind that sees, in the order of their table."""
    return [_of_kind(kind) for kind in SIGHTS]


def _family(kind: str) -> Any:
    return family_of(AutoConfig.for_model(kind))


def _of_kind(kind: str) -> Support:
    model = _without_weights(kind)
    found = {one.name: one.why_not(model, dropout_stays=False) for one in _family(kind).layouts}
    engines = {name: engine(None).refuses(model) for name, engine in ENGINES.items()}
    return Support(kind, MappingProxyType({**found, **engines, ADAPTER: _no_adapter(model)}))


def _without_weights(kind: str) -> Any:
    # asked for, since the default of Gemma 4 is a model without a tower
    config = AutoConfig.for_model(kind, vision_config={})
    for part in (config.get_text_config(), config.vision_config):
        for name in DEPTHS:
            if hasattr(part, name):
                setattr(part, name, FEW)
    with torch.device("meta"):
        return family_of(config).auto_class.from_config(config)


def _no_adapter(model: Any) -> str | None:
    """Why no adapter of the language model can be had: it has no linear layers beside its head."""
    left, head = left_by_adapters(model.config) or "", model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and not re.fullmatch(left, name):
            return None
    return "its language model has no linear layers for an adapter"
