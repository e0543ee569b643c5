"""AdamW for bfloat16 weights that rounds each update up or down at random, right on average.

torchao's optimizer, with three things changed:

1. Its moments are float32. Kept in bfloat16, as torchao keeps them, the second moment stops
   moving: its own update, a thousandth of it at beta2 = 0.999, rounds away too.
2. The draws depend on the seed and the number of the step alone, so that every rank rounds the
   same way, a resumed run does what it would have done, and dropout's draws are left as they were.
3. Where torch.compile has no compiler, it runs uncompiled, with a word on it.

Not here: the arithmetic of a step (torchao). Importing this module needs torchao.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torchao.optim import _AdamW

from counterpoint.errors import first_line
from counterpoint.log import logger

MOMENTS = ("exp_avg", "exp_avg_sq")


class StochasticAdamW(_AdamW):
    """AdamW; bfloat16 weights are rounded stochastically, others to nearest.

    Args:
        params: parameters or groups of them.
        lr: learning rate, >= 0.
        betas: decay of the two moments, in [0, 1).
        eps: added to the denominator, > 0.
        weight_decay: >= 0, decoupled.
        seed: of the rounding.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, bf16_stochastic_round=True)
        self.seed = seed
        self.param_groups[0]["rounded_steps"] = 0  # in a group, so that checkpoints have it
        self._compiled: bool | None = None

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        return torch.zeros_like(p, dtype=torch.float32)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply one step; see ``torch.optim.Optimizer.step``."""
        first = self.param_groups[0]
        device = first["params"][0].device
        if self._compiled is None:
            self._compiled = _compiles(device)
        accelerators = [] if device.type == "cpu" else [device]
        with (
            torch.random.fork_rng(accelerators, device_type=_kind(device)),
            nullcontext() if self._compiled else torch.compiler.set_stance("force_eager"),
        ):
            # an odd factor keeps the seeds of neighbouring runs apart in the 32 bits a CPU takes
            torch.manual_seed((self.seed * 0x9E3779B1 + first["rounded_steps"]) % 2**63)
            loss: float | None = super().step(closure)
        first["rounded_steps"] += 1
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a checkpoint's state; the moments stay float32, which torch would make bfloat16."""
        super().load_state_dict(dict(state_dict))
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in MOMENTS:
                if name in state_dict["state"].get(number, {}):
                    moment = state_dict["state"][number][name]
                    self.state[parameter][name] = moment.to(parameter.device, copy=True)


def _kind(device: torch.device) -> str:
    """What ``fork_rng`` takes; it forks the CPU's generator in any case."""
    return "cuda" if device.type == "cpu" else device.type


def _compiles(device: torch.device) -> bool:
    """Whether torch.compile works here; a C++ compiler or Triton may be missing."""
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler may say
        logger().warning(
            "stochastic_rounding runs uncompiled, slower and with more memory; torch.compile "
            "does not work here: %s",
            first_line(error),
        )
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x + 1
