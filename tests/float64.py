"""Models that are float64 throughout: what asks for float32 gets float64.

transformers computes RMSNorm, rotary angles, router probabilities and some softmaxes in float32,
whatever the weights are. Two layouts whose float64 inputs differ in the last bit may then round to
different float32 values: gradients agree to 6e-8, and no test could ask for more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64Throughout(TorchFunctionMode):
    """While open, ``float()``, ``to(torch.float32)`` and ``dtype=torch.float32`` give float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
