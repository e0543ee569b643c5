"""What the rest of the package asks of an engine; whoever adds an engine answers it.

A step's loss is a sum over the pairs of all ranks, and its gradient is to be that sum's, whatever
an engine does between the ranks.

Not here: numbers that ranks exchange themselves (``ranks``), which engine runs (``table``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Literal

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

    def refuses(self, model: nn.Module) -> str | None:
        """Why a model cannot be trained by this engine; None where it can."""
        return None

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

    # ---- a parameter ----

    @abstractmethod
    def whole_weight(self, parameter: Tensor) -> Tensor:
        """All of a parameter, for the head; what it is used in reaches the parameter's gradient."""

    @abstractmethod
    def own_part(self, parameter: Tensor) -> Tensor:
        """What this rank holds of a parameter, of its gradient or of an optimizer's state."""

    @property
    @abstractmethod
    def watches(self) -> bool:
        """Whether this rank's own parts are to be looked at: those of all such are the model."""

    # ---- a checkpoint ----

    @abstractmethod
    def state_for_saving(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """What this rank writes of a state; None where other ranks write all of it.

        Args:
            state: of the model or of the optimizer: a tree of tensors and plain values.
        """

    @abstractmethod
    def state_to_load(self, saved: dict[str, Any]) -> dict[str, Any]:
        """What this rank loads of a whole saved state.

        Args:
            saved: a tree of whole tensors and plain values.
        """
