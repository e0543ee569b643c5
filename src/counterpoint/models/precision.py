"""What a half-precision weight loses of a small update, and what keeps it.

A bfloat16 weight has 8 bits of precision. An update below half a unit in its last place rounds
away, step after step, while the loss is logged as if nothing were wrong.

1. ``warn_of_rounding`` counts what a run could not move, before the first step.
2. ``stochastic_adamw`` is the optimizer that loses none: AdamW that rounds up or down at random.

Not here: which weights a step leaves where they are (``rounding``), float32 weights, which are
the default (``weights``), and autocast (transformers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError, SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger
from counterpoint.rounding import CHUNK, held, rounds_to_nearest

HALF = (torch.bfloat16, torch.float16)

ENOUGH = 1e-4
"""Learning rate from which nothing is said: it moves a bfloat16 weight below 1/32."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How many weights a step the size of the learning rate does not move.

    Args:
        held: half-precision weights under training that would stay where they are.
        weights: half-precision weights under training.
        learning_rate: the size of the step; the largest among the optimizer's groups.
    """

    held: int
    weights: int
    learning_rate: float


def rounding(optimizer: torch.optim.Optimizer) -> Rounding:
    """Count the weights that an optimizer, at its full learning rate, could not move.

    Args:
        optimizer: of any kind; weights whose rounding errors it keeps are not counted.
    """
    stuck: dict[torch.device, Tensor] = {}
    weights, largest = 0, 0.0
    for parameter, rate in _losing(optimizer):
        weights += parameter.numel()
        largest = max(largest, rate)
        for part in torch.split(parameter.detach().flatten(), CHUNK):
            count = held(part, rate).sum()
            stuck[part.device] = stuck.get(part.device, torch.zeros_like(count)) + count
    return Rounding(sum(int(count) for count in stuck.values()), weights, largest)


def warn_of_rounding(optimizer: torch.optim.Optimizer) -> Rounding | None:
    """Say how many weights the run cannot move, if its learning rate is below ``ENOUGH``.

    Returns:
        What was counted; None where there was nothing to say.
    """
    found = rounding(optimizer)
    if not found.held or found.learning_rate >= ENOUGH:
        return None
    logger().warning(
        "%.1f%% of the %s half-precision weights under training cannot move: a step of %g, the "
        "learning rate, is less than half a unit in their last place and rounds away. Keep the "
        "weights in float32 (pass the model's name, or model.float(); bf16=True still computes "
        "in bfloat16), or set stochastic_rounding=True. See docs/precision.md.",
        100 * found.held / found.weights,
        f"{found.weights:,}",
        found.learning_rate,
    )
    return found


def check_stochastic_rounding(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse ``stochastic_rounding`` where it would do nothing or cannot be had.

    Args:
        parameters: of the model as it will be trained.

    Raises:
        ConfigError: CP104 if none of those that train is bfloat16.
        SetupError: CP502 if torchao is not installed.
    """
    dtypes = {parameter.dtype for parameter in parameters if parameter.requires_grad}
    if torch.bfloat16 not in dtypes:
        found = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ConfigError(
            "CP104",
            f"stochastic_rounding is for bfloat16 weights, but those under training are {found}. "
            "Load the model in bfloat16, or leave the option out: float32 weights, adapters "
            "among them, keep every update.",
        )
    _stochastic_class()


def stochastic_adamw(args: CPOConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class of the optimizer behind ``stochastic_rounding``, and its arguments.

    Raises:
        SetupError: CP502 if torchao is not installed.
    """
    return _stochastic_class(), {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "seed": args.seed,
    }


def _stochastic_class() -> type[torch.optim.Optimizer]:
    try:
        from counterpoint.models.stochastic_adamw import StochasticAdamW
    except ImportError as error:
        raise SetupError(
            "CP502",
            "stochastic_rounding needs the package torchao, which is not installed: "
            + installing(EXTRAS["torchao"]),
        ) from error
    return StochasticAdamW


def _losing(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, float]]:
    """Half-precision weights that are rounded to nearest, and the learning rate of each."""
    loses = rounds_to_nearest(optimizer)
    for group in optimizer.param_groups:
        rate = float(group.get("initial_lr", group["lr"]))  # a schedule has begun at 0 already
        for parameter in group["params"]:
            if parameter.requires_grad and parameter.dtype in HALF and loses[parameter]:
                yield parameter, rate
