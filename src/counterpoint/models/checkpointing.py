"""Which layers compute their activations again in the backward pass.

transformers turns all of them on. A share of them costs a share of the time and saves a share of
the memory; the values are the same, since a layer that is computed again draws the same dropout.

Not here: what else may leave the device's memory (``forward.offload``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from counterpoint.errors import ConfigError
from counterpoint.model_seams import class_of


def enable_checkpointing(
    model: nn.Module, keywords: Mapping[str, Any] | None = None, share: float = 1.0
) -> None:
    """Let a model's layers compute their activations again.

    Args:
        model: of transformers, perhaps with an adapter.
        keywords: for ``torch.utils.checkpoint.checkpoint``; None or empty: transformers' own.
        share: of the layers, in (0, 1].

    Raises:
        ConfigError: CP104 where a share is asked for of a model that cannot choose.
    """
    inner: Any = model
    # the newer name of two; older releases have the other alone
    enable = getattr(inner, "activation_checkpointing_enable", None)
    (enable or inner.gradient_checkpointing_enable)(dict(keywords or {}) or None)
    keep_share(model, share)


def keep_share(model: nn.Module, share: float) -> None:
    """Of the layers that compute their activations again, let only a share do so.

    Args:
        model: whose checkpointing is on.
        share: of its layers, in (0, 1]; rounded to whole layers, at least one of them.

    Raises:
        ConfigError: CP104 where a share is asked for of a model that cannot choose.
    """
    if share == 1:
        return
    layers = [*layers_of(model)]
    if not layers:
        raise ConfigError(
            "CP104",
            f"checkpointing_share={share} has no meaning for {class_of(model).__name__}, whose "
            "layers cannot be chosen one by one; leave it out, and all of them are computed again.",
        )
    for layer, again in zip(layers, spread_evenly(len(layers), share), strict=True):
        for module in layer.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = again


def spread_evenly(count: int, share: float) -> list[bool]:
    """Which of so many layers are computed again, evenly over the depth.

    Args:
        count: of layers, at least 1.
        share: in (0, 1].

    Returns:
        One entry a layer; as many are True as the share comes to, and at least one.
    """
    chosen = max(1, round(share * count))
    return [(number + 1) * chosen // count > number * chosen // count for number in range(count)]


def layers_of(module: nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """Layers that can compute their activations again, in the order of the model.

    transformers makes every layer of its stacks such a module, and FSDP2 gathers by the same ones.

    Args:
        module: a model, perhaps with an adapter, or a part of one.

    Yields:
        Those that are inside of no other.
    """
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from layers_of(child)
