"""What transformers and accelerate call private about a model, asked in one place.

Not here: the ``Trainer`` (``trainer.transformers_seams``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SOURCE_KEY = "_name_or_path"
"""The key of a model's configuration that says what it was loaded from."""


MERGED_FROM = "counterpoint_merged_from"
"""The attribute of a model that says what it was merged from."""


GROWN = "counterpoint_grown"
"""The attribute of a model whose new rows whoever opens its adapter makes the same again."""


def class_of(model: Any) -> Any:
    """The class of a model as its file has it: one in shards is of a class of its own, made of two.

    Args:
        model: any.
    """
    return next(k for k in type(model).__mro__ if not k.__name__.startswith("FSDP"))


def under_adapter(model: Any) -> Any:
    """The model that an adapter lies on; any other model itself.

    Args:
        model: plain or PEFT-wrapped.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def loaded_from(model: Any) -> str:
    """The hub id or folder that a model was loaded from; "" for one made in memory, or none.

    Args:
        model: with or without a ``config``.
    """
    return str(getattr(getattr(model, "config", None), SOURCE_KEY, "") or "")


def merged_from(model: Any) -> Mapping[str, Any]:
    """What a model says that it was merged from: its ``base`` and ``adapters``; else empty.

    Args:
        model: plain or PEFT-wrapped.
    """
    found: Mapping[str, Any] = getattr(model, MERGED_FROM, None) or {}
    return found


def saves_embeddings(model: Any) -> Any:
    """What PEFT is told of embeddings beside an adapter; by itself it saves resized ones whole.

    Args:
        model: with an adapter.

    Returns:
        ``save_embedding_layers``: False where rows for new tokens were added by us, and train.
    """
    return False if getattr(model, GROWN, False) else "auto"


def attention_of(model: Any) -> str | None:
    """The name of the attention function that a model uses; None where it says none.

    Args:
        model: with a ``config``.
    """
    found: str | None = getattr(model.config, "_attn_implementation", None)
    return found


def can_exchange_attention(model: Any) -> bool:
    """Whether a model takes another attention function through transformers' interface.

    Args:
        model: any.
    """
    asked = getattr(model, "_can_set_attn_implementation", None)
    return asked is not None and bool(asked())


def left_out_of_files(model: Any) -> tuple[str, ...]:
    """Names of the weights that a model's ``save_pretrained`` does not write.

    Args:
        model: of transformers.
    """
    return tuple(getattr(model, "_keys_to_ignore_on_save", None) or ())


def never_quantized(model: Any) -> frozenset[str]:
    """Parts of the names of layers that a model's own code computes in float32: T5's ``wo``.

    transformers quantises no such layer, whoever asks for it.

    Args:
        model: of transformers, plain or adapted.
    """
    return frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())


@contextmanager
def quantized_may_pass(model: Any, *, trains: bool) -> Iterator[None]:
    """Within it a ``Trainer`` takes quantised weights without an adapter, which do not train.

    Args:
        model: with or without an adapter; None for one that is made later.
        trains: it will, so that transformers shall look for an adapter.
    """
    mark = "_hf_peft_config_loaded"
    before = getattr(model, mark, None)
    if trains or before is None:
        yield
        return
    setattr(model, mark, True)
    try:
        yield
    finally:
        setattr(model, mark, before)


def reduced_by_its_engine(parameter: Any) -> None:
    """Keep transformers from averaging the gradient of a weight that is whole on every rank.

    Args:
        parameter: of a model that was loaded in shards, put on it later.
    """
    parameter._replicated_grad_hook_registered = True


@contextmanager
def said_to_save_models_only(args: Any, model: Any) -> Iterator[None]:
    """Within it transformers makes a trainer of a model that was loaded in shards.

    It refuses one whose optimizer is to be saved, which it cannot do itself.

    Args:
        args: the run's options.
        model: any, or None.
    """
    hides = getattr(model, "is_distributed_loading_by_transformers", False)
    kept = args.save_only_model if hides else None
    if hides:
        args.save_only_model = True
    try:
        yield
    finally:
        if hides:
            args.save_only_model = kept


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Within it a model's ``forward`` is its own, without the autocast that accelerate puts in.

    Args:
        model: unwrapped from distributed training.
    """
    own = vars(model)
    inside, plain = own.get("forward"), own.get("_original_forward")
    if inside is not None and plain is not None:
        own["forward"] = plain
    try:
        yield
    finally:
        if inside is not None:
            own["forward"] = inside
