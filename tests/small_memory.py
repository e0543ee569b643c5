"""A memory that holds so many input tokens of a micro-batch, and fails as the real one does."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class SmallMemory:
    """Makes a model fail on more tokens than fit.

    Args:
        model: to make fail.
        tokens: most input tokens of a micro-batch.
        where: "forward" fails before anything is computed; "backward" when every layer above the
            embedding has its gradient already.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, where: str) -> None:
        self.tokens, self.where = tokens, where
        self.failed: list[int] = []
        self.kept: list[bool] = []
        """Whether what a failed attempt had computed was there still when the next one began."""
        self._computed: weakref.ref[Tensor] | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.get_input_embeddings().register_forward_hook(self._embed)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._computed is not None:
            self.kept.append(self._computed() is not None)
            self._computed = None
        if self.where == "forward":
            ids = args[0] if args else kwargs["input_ids"]
            self._fill(ids.numel())

    def _embed(self, module: Any, args: tuple[Any, ...], embedded: Tensor) -> None:
        tokens = args[0].numel()
        if self.where == "backward" and embedded.requires_grad and tokens > self.tokens:
            self._computed = weakref.ref(embedded)
            embedded.register_hook(lambda gradient: self._fill(tokens))

    def _fill(self, tokens: int) -> None:
        if tokens > self.tokens:
            self.failed.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
