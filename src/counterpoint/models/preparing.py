"""A model and its tokenizer made ready to train, before transformers' own constructor runs.

What cannot be trained is refused with a code before anything is written.

Not here: loading by name (``loading``), data (``data.prepare``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data.encoder import Encoder, TextEncoder
from counterpoint.data.options import PrepareOptions
from counterpoint.data.processors import tokenizer_of
from counterpoint.errors import ConfigError, ModelError, SetupError
from counterpoint.forward.dropout import disable_dropout
from counterpoint.forward.routing import find_routers, own_coefficient
from counterpoint.forward.rows import EmbeddingRows
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger, quiet_calls
from counterpoint.model_seams import class_of
from counterpoint.models.family import family_of, processor_refusal, why_not_trained
from counterpoint.models.precision import check_stochastic_rounding
from counterpoint.models.quantized import prepare_quantized
from counterpoint.models.trainable import (
    check_checkpointing,
    check_kind,
    check_parameters,
    check_read,
    check_trainable,
    freeze_computed,
    keep_pictures,
)


def prepare_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    """A tokenizer that can end a completion and pad a batch.

    Args:
        tokenizer: the trainer's ``processing_class``, a tokenizer or a processor of pictures; gets
            EOS as pad token if it has none, as TRL does (labels go by length, so that EOS is still
            learned).

    Returns:
        The same tokenizer; of a processor, the one in it.

    Raises:
        ModelError: CP301 if it is no tokenizer, CP302 without an end-of-sequence token, CP306
            for a processor of something else.
    """
    tokenizer = tokenizer_of(tokenizer)
    if refusal := processor_refusal(tokenizer):
        raise ModelError("CP306", f"{refusal} Pass its .tokenizer to train on text alone.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            "CP301",
            f"processing_class should be a transformers tokenizer, not a "
            f"{type(tokenizer).__name__}.",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "CP302",
            "the tokenizer has no end-of-sequence token, so no completion would learn to end. "
            "Set tokenizer.eos_token.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prepare_model(
    model: nn.Module,
    args: CPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    peft_config: Any = None,
    *,
    trains: bool = True,
) -> nn.Module:
    """A model ready to train: of the right kind, adapted if asked, without dropout.

    Args:
        model: a causal language model, plain or PEFT-wrapped.
        args: the run's options.
        tokenizer: whose pad token the model's configuration takes over.
        peft_config: wrap the model with this adapter, or None.
        trains: False for a model that is only evaluated.

    Returns:
        The model, wrapped if there is a ``peft_config``.

    Raises:
        ModelError: CP305 if nothing would train, CP306 for an unsupported kind of model, CP307
            for an adapter that does not fit, CP314 for one that checkpointing leaves out, CP316 and
            CP319 for quantised weights that cannot be trained on, CP336 for pictures to keep
            where the tower trains.
        ConfigError: CP104 for ``stochastic_rounding`` without bfloat16 weights to train, or for
            weights that should be quantised and are not, or for pictures to keep of a model that
            sees none.
        SetupError: CP502 if PEFT or torchao is needed and not installed.
    """
    refusal = why_not_trained(model)
    if refusal:
        raise ModelError("CP306", refusal)
    config: Any = model.config
    _check_encoder(config, args)
    has_adapter = peft_config is not None or hasattr(model, "peft_config")
    prepare_quantized(model, args, adapted=has_adapter or not trains)
    if peft_config is not None:
        model = adapt(model, args, peft_config)
    check_checkpointing(model, bool(args.gradient_checkpointing))
    if args.gradient_checkpointing and hasattr(model, "peft_config"):
        # frozen embeddings would leave checkpointed segments without an input that needs a grad
        model.enable_input_require_grads()  # type: ignore[operator]
    freeze_computed(model)
    check_trainable(model)
    if args.stochastic_rounding:
        check_stochastic_rounding(model.parameters())
    if args.disable_dropout:
        disable_dropout(model)
    keep_pictures(model, args.picture_cache_gb)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    text_config.pad_token_id = tokenizer.pad_token_id
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
    return model


def _check_encoder(config: Any, args: CPOConfig) -> None:
    has = bool(getattr(config, "is_encoder_decoder", False))
    if args.is_encoder_decoder not in (None, has):
        raise ConfigError(
            "CP104",
            f"is_encoder_decoder={args.is_encoder_decoder}, but the model has "
            f"{'an' if has else 'no'} encoder. Leave it out: the model says it itself.",
        )


def adapt(model: nn.Module, args: CPOConfig, peft_config: Any) -> nn.Module:
    """Wrap a model with a new PEFT adapter.

    Args:
        model: not adapted yet.
        args: the run's options.
        peft_config: a ``peft.PeftConfig``.

    Returns:
        The ``PeftModel``.

    Raises:
        ModelError: CP307 if the model has an adapter already, or none of its modules match.
        SetupError: CP502 if PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise SetupError(
            "CP502",
            "a peft_config needs the package peft, which is not installed: "
            + installing(EXTRAS["peft"]),
        ) from error
    if not isinstance(peft_config, peft.PeftConfig):
        raise ModelError(
            "CP307",
            f"peft_config should be a peft.PeftConfig, not a {type(peft_config).__name__}.",
        )
    if isinstance(model, peft.PeftModel):
        raise ModelError(
            "CP307",
            "the model has an adapter already; pass it without peft_config to train that one "
            "(loaded with PeftModel.from_pretrained(..., is_trainable=True)), or merge it first "
            "(model.merge_and_unload()).",
        )
    check_kind(peft_config)
    check_parameters(model, peft_config)
    check_read(model, peft_config)
    if peft_config.inference_mode:
        raise ModelError(
            "CP307",
            f"the {type(peft_config).__name__} has inference_mode=True, so that its adapter would "
            "be frozen. Set it to False, or leave it out.",
        )
    lora_dropout: Any = getattr(peft_config, "lora_dropout", None)
    if args.disable_dropout and lora_dropout:
        logger().info(
            "lora_dropout=%g is set to 0; disable_dropout=False would keep it.",
            lora_dropout,
        )
    try:
        with quiet_calls():
            adapted: nn.Module = peft.get_peft_model(model, peft_config)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # the last two of quantised weights
        raise ModelError("CP307", f"the adapter does not fit the model: {error}") from error
    return adapted


def encoder_of(model: Any, tokenizer: PreTrainedTokenizerBase, args: CPOConfig) -> Encoder[Any]:
    """What makes token ids of a run's rows, as the family of its model reads them.

    Args:
        model: or its configuration; None, for one that is made later: as a decoder does.
        tokenizer: of the model.
        args: the run's options.

    Raises:
        ConfigError: CP102 and CP104 for languages that the tokenizer does not have, or a decoder.
        ModelError: CP302 for a tokenizer without EOS, CP317 for an encoder-decoder whose decoder
            begins with a token that nobody names.
    """
    if model is None:
        return TextEncoder(tokenizer)
    configured = getattr(model, "config", model)
    return family_of(configured).encoder(tokenizer, configured, PrepareOptions.of(args))


def embedding_rows(model: Any) -> EmbeddingRows | None:
    """Token ids that a model's embeddings know; None where it cannot be asked."""
    try:
        read = int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        return None
    config = getattr(model, "config", None)
    apart = not getattr(config, "share_encoder_decoder_embeddings", True)  # some Marians
    return EmbeddingRows(read, int(getattr(config, "decoder_vocab_size", read)) if apart else read)


def balancing_weight(model: nn.Module, args: CPOConfig) -> float:
    """Weight of the load-balancing loss: the option, else the model's own.

    Args:
        model: whose configuration may name a coefficient.
        args: the run's options.

    Returns:
        0 for a model without experts.

    Raises:
        ConfigError: CP104 for a weight on a model that has nothing to balance.
        ModelError: CP313 for a weight on routers whose choice cannot be counted.
    """
    wanted = args.router_aux_loss_coef
    weight = own_coefficient(model.config) if wanted is None else wanted
    if not weight:
        return 0.0
    if not find_routers(model):
        if wanted:
            raise ConfigError(
                "CP104",
                f"router_aux_loss_coef={wanted} has no meaning for {class_of(model).__name__}, "
                "which has no experts to balance, or routers that transformers does not know.",
            )
        return 0.0
    return weight
