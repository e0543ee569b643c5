"""Several processes, each with the whole model: PyTorch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from counterpoint import ranks
from counterpoint.engine.face import Pass, sees_pictures
from counterpoint.engine.plain import Plain


class Ddp(Plain):
    """A copy of the model on every rank, and the mean of their gradients in the last backward."""

    name = "ddp"
    reduction = "mean"
    # buffers of a language model are constants, and a rank that begins a step again could not send
    # them a second time
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"ddp_broadcast_buffers": False})

    @classmethod
    def runs(cls, kind: str) -> bool:
        """Where accelerate runs one process a device."""
        return kind.startswith("MULTI_")

    def expects(self, model: nn.Module) -> None:
        """Have it look for weights without a gradient: what sees has none where a batch is text."""
        handler = getattr(self._accelerator, "ddp_handler", None)
        if handler is not None and sees_pictures(model):
            handler.find_unused_parameters = True

    @property
    def collective_passes(self) -> frozenset[Pass]:
        """The last backward; where buffers are sent round, every forward as well."""
        if ranks.alone():
            return frozenset()
        handler = getattr(self._accelerator, "ddp_handler", None)
        broadcasts = handler is None or handler.broadcast_buffers  # which is DDP's own default
        return frozenset({Pass.LAST_BACKWARD, *([Pass.FORWARD] if broadcasts else [])})

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay on their rank until the last micro-batch."""
        # a model in which nothing trains is not wrapped
        waiting = nullcontext if last else getattr(model, "no_sync", nullcontext)
        entered: AbstractContextManager[Any] = waiting()
        return entered
