"""How a run is set, as far as its memory goes; and what else could be, the cheapest first.

Not here: what either needs (``plan``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from counterpoint.config import CPOConfig
from counterpoint.forward.layout_choice import first_choice
from counterpoint.forward.layouts import AUTO, Layout
from counterpoint.forward.seeing import weights_that_see
from counterpoint.forward.sights import sight_of
from counterpoint.models.family import family_of
from counterpoint.models.trainable import left_by_adapters

LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class MemorySetting:
    """What of a run decides on its memory, lengths apart.

    Args:
        layout: of micro-batches.
        autocast: dtype of products, where it is not that of the weights.
        checkpointing: arguments of activation checkpointing; None: off.
        dtype: of the weights; None: as the model has them.
        adapter: a ``peft.PeftConfig`` to put on the model; None: none.
        stochastic: ``stochastic_rounding`` is on.
        share: of the layers that compute their activations again, where they do.
        offload: activations wait on the host.
        shards_on_host: so does what a rank holds of weights, gradients and moments.
        frozen: parts of a model that sees which do not train, beside those that do not already.
    """

    layout: str
    autocast: torch.dtype | None = None
    checkpointing: Mapping[str, Any] | None = None
    dtype: torch.dtype | None = None
    adapter: Any = None
    stochastic: bool = False
    share: float = 1.0
    offload: bool = False
    shards_on_host: bool = False
    frozen: tuple[str, ...] = ()


def changes_of(
    now: MemorySetting,
    model: nn.Module,
    args: CPOConfig,
    *,
    possible: Sequence[Layout],
    device: str,
    shards: int,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What can be turned on, the cheapest first: line, cost, and the change of a setting.

    Args:
        now: what is on.
        model: of the run.
        args: its options.
        possible: layouts of the model's family, the last being the reference.
        device: kind of device.
        shards: ranks that share a weight.
    """
    if args.layout == possible[-1].name:
        layout, _ = first_choice(model, AUTO, possible=possible)
        if layout.gain:
            yield f"layout: {layout.name}", layout.gain, {"layout": layout.name}
    if now.checkpointing is None:
        cost = "the same step, about a fifth slower"
        yield "gradient_checkpointing: true", cost, {"checkpointing": {}}
    elif now.share < 1:
        cost = "the same step; every layer computes its activations again"
        yield "checkpointing_share: 1.0", cost, {"share": 1.0}
    if not now.offload and device != "cpu":
        cost = "the same step, slower by two trips over the bus"
        yield "activation_offload: true", cost, {"offload": True}
    if shards > 1 and not now.shards_on_host and _can_wait(args, device):
        cost = "the same step, to rounding; the host makes the update"
        yield "optimizer_offload: true", cost, {"shards_on_host": True}
    if now.autocast is None and not now.stochastic:
        yield "bf16: true", "products in 16 bits", {"autocast": torch.bfloat16}
    if now.adapter is None and not hasattr(model, "peft_config"):
        yield from _of_weights(now, model)


def _of_weights(now: MemorySetting, model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What else may train, or how it is held, where all weights do."""
    if _tower_trains(model):
        yield "freeze: [vision]", "the tower that sees stays as it is", {"frozen": ("vision",)}
    if not now.stochastic:
        changes = {"stochastic": True, "dtype": torch.bfloat16}
        yield "stochastic_rounding: true", "weights in 16 bits; needs torchao", changes
    if find_spec("peft") is not None:
        cost = "trains an adapter alone, of weights in 16 bits"
        changes = {"adapter": _adapter(model), "stochastic": False, "dtype": torch.bfloat16}
        yield f"lora_r: {LORA_RANK}", cost, changes


def _adapter(model: nn.Module) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type=family_of(model.config).task,
        r=LORA_RANK,
        target_modules="all-linear",
        exclude_modules=left_by_adapters(model.config),
    )


def _can_wait(args: CPOConfig, device: str) -> bool:
    """Whether the run could have ``optimizer_offload``."""
    quantised = args.load_in_4bit or args.load_in_8bit
    return device != "cpu" and not (args.stochastic_rounding or args.fp16 or quantised)


def _tower_trains(model: nn.Module) -> bool:
    if sight_of(model.config) is None:
        return False
    return any(weight.requires_grad for weight in weights_that_see(model, "vision"))
