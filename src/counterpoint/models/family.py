"""Families of models: what is trained, and what is refused and why. One table.

A row says which configurations are of a family, which of transformers' classes loads it, and in
which layouts its pairs may be laid; or why it is refused. A family that can be trained one day is
a refusal whose row is filled in.

Not here: loading (``loading``), what keeps one model from a layout (``forward.layouts``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import PADDED, SHARED, Layout
from counterpoint.tables import add_row

_ONLY = "only decoder-only language models are supported."


@dataclass(frozen=True, slots=True)
class Family:
    """Models that are loaded, laid out and asked for logits alike.

    Args:
        name: of the family.
        has: whether a model of some configuration is of it; asked of the rows in their order.
        refusal: what is wrong with it, as a sentence that begins with a model's name; "" for a
            family that is trained.
        always: whether a model of it that was made in a script is refused too; others are taken at
            their word.
        auto_class: of transformers, that loads it and makes it.
        layouts: in which its pairs may be laid: the first that nothing forbids is used, and the
            last is the truth that others are compared with.
        find_head: a model, and how the engine gives a weight whole, -> its head, yet unproved.
    """

    name: str
    has: Callable[[Any], bool]
    refusal: str = ""
    always: bool = False
    auto_class: Any = AutoModelForCausalLM
    layouts: tuple[Layout, ...] = (SHARED, PADDED)
    find_head: Callable[..., Head] = find_head


def _is_causal(config: Any) -> bool:
    return getattr(config, "model_type", "") in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _brings_causal_code(config: Any) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _reads_images(config: Any) -> bool:
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    seeing = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return bool(causal[config.model_type] == seeing.get(config.model_type))


def _looks_ahead(config: Any) -> bool:
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in masked and not getattr(config, "is_decoder", False)


DECODER = "decoder"

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        Family(
            "encoder-decoder",
            lambda config: bool(getattr(config, "is_encoder_decoder", False)),
            refusal="is an encoder-decoder model; only decoder-only language models are supported "
            "yet.",
            always=True,
        ),
        Family("decoder with code of its own", _brings_causal_code),
        Family(
            "another task",
            lambda config: not _is_causal(config),
            refusal=f"is no causal language model; {_ONLY}",
        ),
        Family(
            "images and text",
            _reads_images,
            refusal="reads images too; only text models are supported.",
        ),
        Family("encoder", _looks_ahead, refusal=f"sees the words after a word; {_ONLY}"),
        Family(DECODER, lambda config: True),
    )
}
"""Every family by its name."""


def family_of(config: Any) -> Family:
    """The family of a configuration: the first that has it.

    Args:
        config: of transformers.
    """
    return next(family for family in FAMILIES.values() if family.has(config))


def register_family(family: Family) -> Family:
    """Add a family of your own; it is asked before those that are there.

    Args:
        family: whose name no other has.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(FAMILIES, family, "a family", first=True)


def why_not_trained(model: Any) -> str | None:
    """Why a model that was made in a script is refused, as a sentence; None if it is not.

    Args:
        model: any object.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        return f"{name} is not a transformers causal language model."
    family = family_of(config)
    return f"{name} {family.refusal}" if family.refusal and family.always else None
