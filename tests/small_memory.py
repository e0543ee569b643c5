"""A memory that holds so many tokens and patches of a micro-batch, and fails as the real one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from counterpoint.forward.shown import LOOK, patches_in


class SmallMemory:
    """Makes a model fail on more tokens than fit.

    Args:
        model: to make fail.
        tokens: most input tokens of a micro-batch, patches of its pictures included.
        where: "forward" fails before anything is computed; "head" in the backward, when only the
            head has its gradient; "backward" when every layer above the embedding has its own.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, where: str) -> None:
        self.tokens, self.where = tokens, where
        self.failed: list[int] = []
        self.kept: list[bool] = []
        """Whether what a failed backward had to go through was there when the next one began."""
        self._computed: weakref.ref[Tensor] | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.get_input_embeddings().register_forward_hook(self._embed)
        model.get_output_embeddings().register_forward_pre_hook(self._head)
        self._now = 0

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._computed is not None:
            self.kept.append(self._computed() is not None)
            self._computed = None
        ids = args[0] if args else kwargs["input_ids"]
        shown = kwargs.get(LOOK)
        self._now = ids.numel() + (0 if shown is None else patches_in(shown.pairs))
        if self.where == "forward":
            self._fill(self._now)

    def _embed(self, module: Any, args: tuple[Any, ...], embedded: Tensor) -> None:
        if embedded.requires_grad and self._now > self.tokens and self.where != "forward":
            self._computed = weakref.ref(embedded)
            if self.where == "backward":
                self._fill_at_gradient_of(embedded)

    def _head(self, module: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad and self.where == "head":
            self._fill_at_gradient_of(args[0])

    def _fill_at_gradient_of(self, tensor: Tensor) -> None:
        tokens = self._now
        tensor.register_hook(lambda gradient: self._fill(tokens))

    def _fill(self, tokens: int) -> None:
        if tokens > self.tokens:
            self.failed.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
