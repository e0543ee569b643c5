"""One process, which has everything."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.engine.face import Engine, Pass, Reduction
from counterpoint.tensor_parts import is_sharded


class Plain(Engine):
    """The model as it is, on one process."""

    name = "plain"
    reduction: ClassVar[Reduction] = "none"

    @classmethod
    def runs(cls, kind: str) -> bool:
        """Where accelerate distributes nothing, or leaves that to XLA."""
        return kind in ("NO", "XLA")

    def refuses(self, model: nn.Module) -> str | None:
        """Refuse weights of which a process has a part only."""
        for name, parameter in model.named_parameters():
            if is_sharded(parameter):
                return f"{name} is sharded"
        return None

    @property
    def collective_passes(self) -> frozenset[Pass]:
        """There is nobody to meet."""
        return frozenset()

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients add up where they are."""
        return nullcontext()

    def whole_norm(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """The norm over the gradients that are here."""
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(found)

    def whole_weight(self, parameter: Tensor) -> Tensor:
        """The parameter itself."""
        return parameter

    def own_part(self, parameter: Tensor) -> Tensor:
        """The parameter itself."""
        return parameter

    @property
    def watches(self) -> bool:
        """The first rank sees all of the model, and the gradients of all ranks."""
        return ranks.rank() == 0
