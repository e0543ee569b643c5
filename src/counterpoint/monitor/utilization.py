"""Model FLOPs utilisation (MFU): what a step had to compute, over what the devices could have.

A token costs 2 operations for each weight of the matrices in the forward pass, 2 for the gradient
of what it came from, and 2 for the weight's own gradient where it trains (Kaplan et al. 2020,
arXiv:2001.08361; MFU: Chowdhery et al. 2022, arXiv:2204.02311). A prompt that both completions
share counts once, and the output head counts where completions are predicted. Left out are
attention's products of two activations, norms, and what activation checkpointing does twice.

None where it would be a guess: on a device without an entry in ``PEAKS``, and for models with
experts, an encoder beside the decoder, a tower that sees, quantised weights, or an adapter with
``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

TERA = 10**12

_HOPPER = {"16 bits": 989.4, "tf32": 494.7, "float32": 66.9}

PEAKS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "NVIDIA H100 80GB HBM3": _HOPPER,
        "NVIDIA H200": _HOPPER,
        "NVIDIA H100 PCIe": {"16 bits": 756.0, "tf32": 378.0, "float32": 51.0},
        "NVIDIA A100-SXM4-40GB": {"16 bits": 312.0, "tf32": 156.0, "float32": 19.5},
        "NVIDIA A100-SXM4-80GB": {"16 bits": 312.0, "tf32": 156.0, "float32": 19.5},
        "NVIDIA A100-PCIE-40GB": {"16 bits": 312.0, "tf32": 156.0, "float32": 19.5},
        "NVIDIA A100 80GB PCIe": {"16 bits": 312.0, "tf32": 156.0, "float32": 19.5},
    }
)
"""Name of a device -> its peak by kind of matrix product, in 10^12 operations a second, of the
vendor's data sheet, without sparsity."""


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Operations of one token in forward and backward.

    Args:
        body: of every token.
        head: of a token that is predicted, beside it.
    """

    body: int
    head: int

    def flops(self, tokens: int | float, predicted: int | float) -> int | float:
        """Of so many tokens, of which so many are predicted."""
        return self.body * tokens + self.head * predicted


def token_cost(model: nn.Module) -> TokenCost | None:
    """What a token of a model costs; None for a kind of which that is not known.

    Args:
        model: that trains, its adapter included.
    """
    config: Any = getattr(model, "config", None)
    if config is None or _is_of_another_kind(model, config):
        return None
    output = model.get_output_embeddings()  # type: ignore[operator]
    head = getattr(output, "weight", None)
    # a table is looked up, and multiplies nothing
    tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    body = 0
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            return None  # several to a byte
        if parameter.ndim >= 2 and id(parameter) not in tables and parameter is not head:
            body += _cost(parameter)
    return TokenCost(body, 0 if head is None else _cost(head))


def peak_of(device: torch.device, args: Any, model: nn.Module) -> float | None:
    """What a device could do, in operations a second; None where that is not known.

    Args:
        device: that trains.
        args: the run's options; ``bf16`` and ``fp16`` are read.
        model: whose weights' precision counts without them.
    """
    if device.type != "cuda":
        return None
    peaks = PEAKS.get(torch.cuda.get_device_name(device))
    if peaks is None:
        return None
    sizes = {parameter.element_size() for parameter in model.parameters() if parameter.ndim >= 2}
    if args.bf16 or args.fp16 or max(sizes) == 2:
        return peaks["16 bits"] * TERA
    if sizes != {4}:
        return None
    exact = torch.get_float32_matmul_precision() == "highest"
    return peaks["float32" if exact else "tf32"] * TERA


def _cost(parameter: torch.Tensor) -> int:
    return parameter.numel() * (6 if parameter.requires_grad else 4)


def _is_of_another_kind(model: nn.Module, config: Any) -> bool:
    if getattr(config, "is_encoder_decoder", False) or hasattr(config, "vision_config"):
        return True
    # a whole copy of a layer beside the one that an adapter leaves alone would count twice
    apart = {"experts", "modules_to_save"}
    return any(apart & set(name.split(".")) for name, _ in model.named_modules())
