"""What transformers and accelerate call private about a model, asked in one place.

Not here: the ``Trainer`` (``trainer.transformers_seams``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOURCE_KEY = "_name_or_path"
"""The key of a model's configuration that says what it was loaded from."""


def loaded_from(model: Any) -> str:
    """The hub id or folder that a model was loaded from; "" for one made in memory, or none.

    Args:
        model: with or without a ``config``.
    """
    return str(getattr(getattr(model, "config", None), SOURCE_KEY, "") or "")


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
