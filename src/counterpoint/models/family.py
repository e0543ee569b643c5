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
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME as BROUGHT

from counterpoint.data.encoder import Encoder, TextEncoder
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pictures import PictureRules
from counterpoint.data.processors import processor_around
from counterpoint.data.translation import DecoderStart, TranslationEncoder
from counterpoint.data.vision import VisionEncoder
from counterpoint.errors import ConfigError, ModelError
from counterpoint.forward.encoded import ENCODER_ONCE, ENCODER_TWICE
from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED, Layout
from counterpoint.forward.sights import SIGHTS, sight_of
from counterpoint.log import logger
from counterpoint.model_seams import class_of
from counterpoint.tables import add_row

_ONLY = "only language models that write text are supported."


def _text(tokenizer: PreTrainedTokenizerBase, config: Any, options: PrepareOptions) -> Encoder[Any]:
    for name in ("source_lang", "target_lang"):
        if language := getattr(options, name):
            raise ConfigError(
                "CP104",
                f"{name}={language!r} is for encoder-decoders of many languages; a decoder reads "
                "what a prompt says. Leave it out.",
            )
    return TextEncoder(tokenizer)


def _text_alone(
    tokenizer: PreTrainedTokenizerBase, config: Any, options: PrepareOptions
) -> Encoder[Any]:
    refuse_picture_options(options)
    return _text(tokenizer, config, options)


def refuse_picture_options(options: PrepareOptions) -> None:
    """Refuse what a run says of pictures, for models that see none.

    Raises:
        ConfigError: CP104.
    """
    plain = PrepareOptions()
    for name in ("image_folder", "allow_remote_images", "max_image_pixels"):
        if getattr(options, name) != getattr(plain, name):
            raise ConfigError(
                "CP104",
                f"{name}={getattr(options, name)!r} is for models that see pictures; this one "
                "reads text alone. Leave it out.",
            )


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
        processor: attributes of what stands beside its models in place of a tokenizer.
        layouts: in which its pairs may be laid: the first that nothing forbids is used, and the
            last is the truth that others are compared with.
        find_head: a model, and how the engine gives a weight whole, -> its head, yet unproved.
        encoder: a tokenizer, a model's configuration and what a run says of its data -> what makes
            ids of its rows.
        task: of PEFT's task types, by its name.
    """

    name: str
    has: Callable[[Any], bool]
    refusal: str = ""
    always: bool = False
    auto_class: Any = AutoModelForCausalLM
    processor: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = (SHARED, PADDED)
    find_head: Callable[..., Head] = find_head
    encoder: Callable[[PreTrainedTokenizerBase, Any, PrepareOptions], Encoder[Any]] = _text_alone
    task: str = "CAUSAL_LM"


# Encoder-decoders


def _is_encoder_decoder(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


STARTS: dict[str, str] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "marian", "pegasus"), "pad_token_id"),
    **dict.fromkeys(("bart", "m2m_100", "mbart"), "eos_token_id"),
}
"""Kind of configuration -> which of its tokens begins the decoder where it names none itself."""


def _decoder_start(config: Any) -> DecoderStart:
    """What the decoder of an encoder-decoder begins with.

    Raises:
        ModelError: CP317 where its configuration has no such token.
    """
    name = STARTS[config.model_type]
    token = getattr(config, "decoder_start_token_id", None)
    token = getattr(config, name, None) if token is None else token
    if token is None:
        raise ModelError(
            "CP317",
            f"the configuration of this {config.model_type} names neither decoder_start_token_id "
            f"nor {name}, so that it is not known what its decoder begins with. Set "
            "model.config.decoder_start_token_id.",
        )
    # mBART's tokenizer writes the language last, and its decoder begins with it
    return DecoderStart(int(token), language_instead=config.model_type == "mbart")


def _translation(
    tokenizer: PreTrainedTokenizerBase, config: Any, options: PrepareOptions
) -> Encoder[Any]:
    refuse_picture_options(options)
    start, languages = _decoder_start(config), (options.source_lang, options.target_lang)
    # T5 has none: it looks at distances
    positions = getattr(config, "max_position_embeddings", None)
    begins = bool(options.is_encoder_decoder)
    return TranslationEncoder(
        tokenizer, start, *languages, positions=positions, beginning_is_source=begins
    )


# Models that see


def _about_pictures(
    tokenizer: PreTrainedTokenizerBase, config: Any, options: PrepareOptions
) -> Encoder[Any]:
    text, processor, sight = _text(tokenizer, config, options), processor_around(tokenizer), None
    if processor is not None:
        sight = sight_of(config)
    if sight is None:
        logger().info(
            "the model sees pictures, and was given a tokenizer alone: it is trained on text, and "
            "rows with pictures are refused. Pass the model's processor to train on them."
        )
        return text
    return VisionEncoder(processor, config, sight, PictureRules.of(options))


def _sees(config: Any) -> bool:
    """Of a kind that is known, and not by a class that came with the model's own code."""
    return sight_of(config) is not None and not type(config).__module__.startswith(BROUGHT)


def _sees_otherwise(config: Any) -> bool:
    seeing = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return getattr(config, "model_type", "") in seeing


# Decoders


def _is_causal(config: Any) -> bool:
    return getattr(config, "model_type", "") in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _brings_causal_code(config: Any) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _looks_ahead(config: Any) -> bool:
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in masked and not getattr(config, "is_decoder", False)


DECODER, ENCODER_DECODER, SEEING = "decoder", "encoder-decoder", "pictures and text"

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        Family(
            ENCODER_DECODER,
            lambda config: _is_encoder_decoder(config) and config.model_type in STARTS,
            auto_class=AutoModelForSeq2SeqLM,
            layouts=(ENCODER_ONCE, ENCODER_TWICE),
            encoder=_translation,
            task="SEQ_2_SEQ_LM",
        ),
        Family(
            "experts of limited room",
            lambda config: getattr(config, "model_type", "") == "nllb-moe",
            refusal="cannot be trained exactly: an expert drops the tokens of a micro-batch beyond "
            "its expert_capacity, so that a step would depend on how it is cut. Also, transformers "
            "sends every token to the first two experts, whichever the router chose.",
            always=True,
        ),
        Family(
            "encoder-decoder of another kind",
            _is_encoder_decoder,
            refusal="is an encoder-decoder of a kind of which it is not known what its decoder "
            f"begins with; {', '.join(STARTS)} are known.",
            always=True,
        ),
        # first: what Kimi's own files bring is called causal, and sees
        Family(
            SEEING,
            _sees,
            auto_class=AutoModelForImageTextToText,
            layouts=(SHARED, PADDED, PICTURES_TWICE),
            encoder=_about_pictures,
        ),
        Family("decoder with code of its own", _brings_causal_code),
        Family(
            "pictures and text of another kind",
            _sees_otherwise,
            refusal="sees pictures, and is of a kind of which it is not known how its prompts hold "
            f"them and how its positions count them; {', '.join(SIGHTS)} are known.",
        ),
        Family(
            "another task",
            lambda config: not _is_causal(config),
            refusal=f"is no causal language model; {_ONLY}",
            processor=("feature_extractor", "image_processor"),
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


def processor_refusal(tokenizer: Any) -> str | None:
    """Why what should be a tokenizer is refused, as a processor of a family; None if it is none.

    Args:
        tokenizer: any object.
    """
    for family in FAMILIES.values():
        if family.refusal and any(hasattr(tokenizer, part) for part in family.processor):
            return f"{type(tokenizer).__name__} is the processor of a model that {family.refusal}"
    return None


def why_not_trained(model: Any) -> str | None:
    """Why a model that was made in a script is refused, as a sentence; None if it is not.

    Args:
        model: any object.
    """
    name, config = class_of(model).__name__, getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        return f"{name} is not a transformers causal language model."
    family = family_of(config)
    return f"{name} {family.refusal}" if family.refusal and family.always else None
