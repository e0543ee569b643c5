"""Quantised layers without data: the bytes that they hold, and what their products cost.

For a layer that is quantised, and for a plain one that an option will have quantised: a plan is
made before any weight is read.

Not here: quantising (``models.quantized``), adapters, which are put on like on any linear layer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.model_seams import never_quantized
from counterpoint.models.quantized import Quantization, quantized_layers
from counterpoint.tensor_parts import tensor_bytes


class CompressedLinear(nn.Linear):
    """A linear layer that holds some bytes, and makes its weight of them when it multiplies.

    Args:
        width: of its rows.
        height: of its products' rows.
        size: bytes of all that it holds but the bias.
        bias: its own, or None.
        device: where its bytes would lie.
    """

    def __init__(
        self, width: int, height: int, size: int, bias: Any, device: torch.device | str
    ) -> None:
        super().__init__(width, height, bias=False, device="meta")
        codes: Any = torch.empty(size, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        own: Any = self.weight
        own.quant_state = SimpleNamespace(shape=(height, width))  # as bitsandbytes says it
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """The product, of no values.

        Args:
            x: rows of the layer's width, along the last dimension.
        """
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        multiply: Any = _Product.apply
        product: Tensor = multiply(x.to(dtype), self.out_features)
        return product if self.bias is None else product + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, height: int) -> Tensor:
        ctx.width = rows.shape[-1]
        return rows @ rows.new_empty(ctx.width, height)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight = gradient.new_empty(gradient.shape[-1], ctx.width)
        return gradient @ weight, None


def stand_ins(model: nn.Module, device: str, known: dict[int, Any]) -> dict[int, Any]:
    """What a copy of a model has in place of its quantised layers, by what they are.

    Args:
        model: on any device.
        device: of the copy.
        known: what a copy has in place of each tensor.
    """
    layers: list[Any] = [layer for _, layer in quantized_layers(model)]
    return {
        id(layer): CompressedLinear(
            layer.in_features,
            layer.out_features,
            sum(tensor_bytes(w) for n, w in layer.named_parameters(recurse=False) if n != "bias"),
            known.get(id(getattr(layer, "bias", None))),
            device,
        )
        for layer in layers
        if isinstance(layer, nn.Linear)
    }


def compress(model: Any, asked: Quantization) -> None:
    """Give a model without data the layers that an option will have quantised, in place.

    Args:
        model: on ``meta``, not adapted.
        asked: the option.
    """
    head, never = model.get_output_embeddings(), never_quantized(model)
    plain = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head and never.isdisjoint(name.split("."))
    ]
    for name, layer in plain:
        size = asked.size(layer.out_features, layer.in_features)
        model.set_submodule(
            name, CompressedLinear(layer.in_features, layer.out_features, size, layer.bias, "meta")
        )
