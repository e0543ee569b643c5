"""Layers of bitsandbytes that compute in one way, in training as in evaluation.

In evaluation mode bitsandbytes computes otherwise than in training:

1. On CPUs with AVX512-BF16 a layer of 4 bits packs its weight for inference, in bfloat16 and for
   good. Training that goes on has a gradient of exactly 0, and nothing is raised.
2. A layer of 8 bits rounds its input to 8 bits, too; on CUDA it does so in training. A rounding
   that falls the other way then changes what a row gives, and with a threshold for outliers so
   does a large entry of another row: a step would depend on how it is cut.

So these layers are never in evaluation mode, whoever calls ``model.eval()``, and those of 8 bits
multiply by the weight that the codes stand for, in the precision of the run. Nothing else of
either depends on the mode.

In any mode, a layer of 4 bits rounds its bias in place to the precision of its products. Here a
bias stays in its own, and what a product reads is a rounded copy.

Not here: quantising. Importing this module needs bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn


class _OneWay(nn.Module):
    """Stays in training mode."""

    def train(self, mode: bool = True) -> Any:
        """Change nothing; see ``torch.nn.Module.train``."""
        self.training = True
        return self


class OneWay4bit(_OneWay, bitsandbytes.nn.Linear4bit):
    """A layer of 4 bits that never packs its weight, and whose bias stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weight that the codes stand for.

        Args:
            x: rows of the layer's width, along the last dimension.
        """
        own: Any = self
        if own.bias is None:
            plain: Tensor = super().forward(x)
            return plain
        if not own.compute_type_is_set:
            own.set_compute_type(x)
            own.compute_type_is_set = True
        rows = x if own.compute_dtype is None else x.to(own.compute_dtype)
        # codes that were cut into shards have lost their scales; then the layer has them
        scales = getattr(own.weight, "quant_state", None) or own.quant_state
        bias = own.bias.to(rows.dtype)
        product: Tensor = bitsandbytes.matmul_4bit(rows, own.weight, quant_state=scales, bias=bias)
        return product.to(x.dtype)


class OneWay8bit(_OneWay, bitsandbytes.nn.Linear8bitLt):
    """A layer of 8 bits whose input stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """The product with the weight that the codes stand for.

        Args:
            x: rows of the layer's width, along the last dimension.
        """
        own: Any = self
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        multiply: Any = _Product.apply
        product: Tensor = multiply(x.to(dtype), own.weight.data, scales_of(own))
        return product if own.bias is None else product + own.bias.to(dtype)


def scales_of(layer: Any) -> Tensor:
    """The scales of a layer of 8 bits, one a row.

    bitsandbytes keeps them beside the codes, and after a pass of its own in the layer's state. A
    weight that has been cut into shards has lost them; then the layer has (``make_one_way``).

    Args:
        layer: that is, or was, bitsandbytes' own.
    """
    beside = getattr(layer.weight, "SCB", None)
    found: Tensor = layer.state.SCB if beside is None else beside
    return found


class _Product(torch.autograd.Function):
    """A linear layer that keeps codes for its backward, and not the weight that they stand for."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return nn.functional.linear(rows, _weight(codes, scales, rows.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        codes, scales = ctx.saved_tensors
        return gradient @ _weight(codes, scales, gradient.dtype), None, None


def _weight(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scales[:, None] / 127)


_OURS: dict[type[Any], type[Any]] = {
    bitsandbytes.nn.Linear4bit: OneWay4bit,
    bitsandbytes.nn.LinearNF4: OneWay4bit,
    bitsandbytes.nn.LinearFP4: OneWay4bit,
    bitsandbytes.nn.Linear8bitLt: OneWay8bit,
}


def make_one_way(layer: nn.Module) -> None:
    """Give a layer of bitsandbytes, in place, the class that computes in one way; others stay.

    Args:
        layer: of any kind.
    """
    ours = _OURS.get(type(layer))
    holds_codes = getattr(layer, "weight", None) is not None and not layer.weight.requires_grad
    if ours is not None and holds_codes:
        layer.__class__ = ours
        layer.train()
        if ours is OneWay8bit:
            own: Any = layer
            own.state.SCB = scales_of(own)
