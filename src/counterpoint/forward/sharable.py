"""What keeps a model from sharing its prompts, as far as it can be read off the model.

Everything else must agree with padded rows on the first pairs of a run (``agreement``).

Not here: the attention that shares (``shared_attention``).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import nn

from counterpoint.forward.dropout import dropout_rates
from counterpoint.forward.shared_attention import BACKENDS
from counterpoint.forward.varlen_attention import AttentionCall
from counterpoint.model_seams import attention_of, can_exchange_attention

LEARNS_A_PROMPT = "prompt learning puts its own tokens before each row"

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers, as transformers' configurations name them, that only look back in attention."""


def why_not_shared(model: nn.Module, *, dropout_stays: bool = True) -> str | None:
    """What forbids a model to share prompts, in words; None if nothing known does.

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
        dropout_stays: False for a model whose dropout will be turned off before it trains.
    """
    inner: Any = model
    if learns_a_prompt(inner):
        return LEARNS_A_PROMPT
    attention = attention_of(model)
    if attention not in BACKENDS:
        return f"attention runs through {attention}, not through {' or '.join(BACKENDS)}"
    if not can_exchange_attention(model):
        return "its attention cannot be exchanged through transformers' interface"
    config = inner.config.get_text_config()
    strange = set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS
    if strange:
        return f"it has layers of kind {', '.join(sorted(strange))}"
    return noise_on("a shared prompt", inner, dropout_stays=dropout_stays)


def learns_a_prompt(model: Any) -> bool:
    """Whether an adapter of a model puts tokens of its own before each row."""
    configs = getattr(model, "peft_config", None)
    adapters = configs.values() if isinstance(configs, dict) else ()
    return any(getattr(one, "is_prompt_learning", False) for one in adapters)


def noise_on(what: str, model: nn.Module, *, dropout_stays: bool) -> str | None:
    """What of a model is drawn at random and would be drawn once instead of twice; None if nothing.

    Args:
        what: that would be computed once for both completions, in words.
        model: as for ``why_not_shared``.
        dropout_stays: as for ``why_not_shared``.
    """
    if _jitter(model):
        return f"its routers add noise, which would fall on {what} once instead of twice"
    if dropout_stays and any(dropout_rates(model)):
        return f"dropout is on, and would fall on {what} once instead of twice"
    return None


def unseen(model: nn.Module, calls: Set[AttentionCall]) -> str | None:
    """What attention was not told, though it must know it to share; None if it was told all.

    Args:
        model: as for ``why_not_shared``.
        calls: that reached our attention in a forward pass.
    """
    if not calls:
        return "the model does not hand the layout of a row on to its attention"
    inner: Any = model
    config = inner.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    slides = layers is None or "sliding_attention" in layers
    if window and slides and all(call.window is None for call in calls):
        return f"its window of {window} positions is known to masks only, not to its attention"
    return None


def _jitter(model: nn.Module) -> bool:
    return any(
        isinstance(value, float) and value > 0 and "jitter" in name
        for module in model.modules()
        for name, value in vars(module).items()
    )
