"""What the rest of the package asks of an engine; whoever adds an engine answers it.

A step's loss is a sum over the pairs of all ranks, and its gradient is to be that sum's, whatever
an engine does between the ranks.

Not here: numbers that ranks exchange themselves (``ranks``), which engine runs (``table``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks

Reduction = Literal["none", "mean", "sum"]


class Pass(Enum):
    """A pass through the model that ranks may have to enter together."""

    FORWARD = "forward"
    """Of any kind: of a step, of an evaluation, of a proof, of text that is written."""
    BACKWARD = "backward"
    """Of a micro-batch that is not the step's last."""
    LAST_BACKWARD = "last backward"
    """Of the step's last micro-batch, after which the gradient is that of all ranks."""


class Engine(ABC):
    """One way to run on one or several processes.

    Args:
        accelerator: accelerate's, which knows the run's precision; None for a step in the
            precision of its weights, on one process.
    """

    name: ClassVar[str]
    reduction: ClassVar[Reduction]
    """What becomes of the gradients of several ranks."""
    shards: ClassVar[bool] = False
    """Whether each rank holds a part of the weights."""
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Options of transformers with values of our own where a user leaves them open."""

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator

    @classmethod
    @abstractmethod
    def runs(cls, kind: str) -> bool:
        """Whether this engine is what accelerate has set up.

        Args:
            kind: the name of its ``DistributedType``, as "NO" or "MULTI_GPU".
        """

    @classmethod
    def settle(cls, args: Any) -> None:
        """Set the options that this engine needs and the user has left open.

        Args:
            args: transformers' ``TrainingArguments``; accelerate has not read them yet.
        """
        for name, value in cls.defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, value)

    @classmethod
    def owns(cls, model: nn.Module) -> bool:
        """Whether a model is this engine's whatever accelerate has set up: as it was loaded."""
        return False

    def refuses(self, model: nn.Module) -> str | None:
        """Why a model cannot be trained by this engine; None where it can."""
        return None

    def expects(self, model: nn.Module) -> None:  # noqa: B027 - most have nothing to learn
        """Learn what a model does, before accelerate wraps it.

        Args:
            model: that is to be trained.
        """

    def ready(self, model: nn.Module) -> None:  # noqa: B027 - most have nothing to do
        """Take a model over, before its first step; every rank must call it.

        Args:
            model: as wrapped for training. One that was taken over already stays as it is.
        """

    def at_rest(self, model: nn.Module) -> None:  # noqa: B027 - nor to give back
        """Give back what a forward has gathered: parameters are what this rank holds of them.

        Args:
            model: of the run.
        """

    # ---- a step ----

    @property
    def loss_factor(self) -> int:
        """What a rank's share of the loss is multiplied by, so that gradients add up over ranks."""
        return ranks.count() if self.reduction == "mean" else 1

    @property
    @abstractmethod
    def collective_passes(self) -> frozenset[Pass]:
        """Which passes all ranks must enter, or none.

        A rank that is in one cannot leave it alone: a step that ran out of memory there cannot be
        begun again.
        """

    @property
    def in_step(self) -> bool:
        """Whether ranks meet in every pass, so that they must have as many micro-batches."""
        return {Pass.FORWARD, Pass.BACKWARD} <= self.collective_passes

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run, around a forward pass."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    @abstractmethod
    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: nothing is exchanged before the last.

        Args:
            model: as wrapped for training.
            last: whether the micro-batch is the step's last.
        """

    @abstractmethod
    def whole_norm(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """The norm of the whole gradient, the same on every rank; 0 where there is none.

        Args:
            parameters: of the model, after the step's last backward.
        """

    def clip(self, model: nn.Module, most: float = math.inf) -> Float[Tensor, ""]:
        """The norm of a step's whole gradient, which is cut where it is longer than it may be.

        Args:
            model: as wrapped for training, after the step's last backward.
            most: largest norm, above 0; without it nothing is cut.

        Returns:
            The norm before.
        """
        self.at_rest(model)
        norm = self.whole_norm(model.parameters())
        if most == math.inf:
            return norm
        alike: dict[torch.device, list[Tensor]] = defaultdict(list)
        for parameter in model.parameters():
            if parameter.grad is not None:
                part = self.own_part(parameter.grad)
                alike[part.device].append(part)
        # as torch.nn.utils.clip_grad_norm_ has it
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for device, parts in alike.items():
            torch._foreach_mul_(parts, factor.to(device))
        return norm

    def gradient(self, total: Tensor, model: nn.Module) -> list[Tensor | None]:
        """The gradient of a number by what trains, as far as this rank holds it, for a proof.

        No weight's own gradient is touched; there is none yet under an engine that shards.

        Args:
            total: a scalar with a graph; every rank has one.
            model: unwrapped from distributed training.

        Returns:
            Of each weight that trains, in the order of ``model.parameters()``; None for one that
            does not bear on the number.
        """
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        if not total.requires_grad:
            return [None] * len(trained)
        return list(torch.autograd.grad(total, trained, allow_unused=True))

    # ---- a parameter ----

    @abstractmethod
    def whole_weight(self, parameter: Tensor) -> Tensor:
        """All of a parameter, for the head; what it is used in reaches the parameter's gradient."""

    @abstractmethod
    def own_part(self, parameter: Tensor) -> Tensor:
        """What this rank holds of a parameter, of its gradient or of an optimizer's state."""

    def share_of(self, parameter: Tensor) -> float:
        """What this rank's own part counts in a sum over all ranks that watch, in (0, 1].

        Args:
            parameter: of the model; one that several ranks hold alike counts once in all.
        """
        return 1.0

    @property
    @abstractmethod
    def watches(self) -> bool:
        """Whether this rank's own parts are to be looked at: those of all such are the model."""


def sees_pictures(model: nn.Module) -> bool:
    """Whether a model has parts for pictures, which do nothing where a batch shows none.

    Args:
        model: plain or adapted.
    """
    return getattr(getattr(model, "config", None), "vision_config", None) is not None
