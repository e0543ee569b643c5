"""Linear layers that see no padding, where rows are padded all the same.

Nearly all of a model's work is in its linear layers, and these treat each token by itself. So the
real tokens of a batch are gathered before each layer, and put back to their places after it; in
between there is no padding, and a row that stands in the batch twice is computed once. What a layer
gives at padding is 0 then, which no real token looks at.

A layer keeps its input for its gradient, and keeps the padded rows, of which others hold the same:
three projections of the same rows would keep three copies of what was gathered.

Which tokens are real comes with a call of the model, under ``PLACES``, and is taken out of it
before the model's own code sees it. It holds until the next call, so that a checkpointed layer
finds it again in the backward pass.

Not here: attention, which has to see the rows apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

PLACES = "counterpoint_places"
"""Under which a layout hands ``Places`` to a model that is ``unpadded``."""

WORTH = 0.9
"""Least share of padded tokens for which gathering pays: its copies cost a little as well."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the real tokens of rows are.

    Args:
        rows: of the batch.
        tokens: of each row.
        once: flat indices of the real tokens, of rows that stand there several times in one.
        places: flat indices of all of them.
        which: of the first, the one that stands at each of the places; None: they are the same.
    """

    rows: int
    tokens: int
    once: Tensor
    places: Tensor
    which: Tensor | None = None

    @classmethod
    def of(
        cls, real: Bool[np.ndarray, "rows tokens"], *, shows: Sequence[int] | None = None
    ) -> Places | None:
        """From a mask; None where nothing would be won.

        Args:
            real: True where a token is.
            shows: which of its rows each row is that layers are given, all of them at least once;
                None: they are given the rows themselves.
        """
        shows = range(len(real)) if shows is None else shows
        tokens = real.shape[1]
        if np.count_nonzero(real) > WORTH * len(shows) * tokens:
            return None
        numbers = np.arange(real.size).reshape(real.shape)[list(shows)].ravel()
        places = np.flatnonzero(real[list(shows)])
        # a token is known by its number in the rows that differ
        _, first, which = np.unique(numbers[places], return_index=True, return_inverse=True)
        alike = len(first) == len(which)
        once, every, to = map(torch.from_numpy, (places[first], places, which))
        return cls(len(shows), tokens, once, every, None if alike else to)

    def fits(self, states: Tensor) -> bool:
        """Whether a layer's input is laid out like this."""
        return states.dim() == 3 and states.shape[:2] == (self.rows, self.tokens)

    def gathered(self, states: Tensor) -> Tensor:
        """``[rows, tokens, features]`` -> ``[real tokens, features]``, each once."""
        gathered: Tensor = _Gathered.apply(states, self)  # type: ignore[no-untyped-call]
        return gathered

    def put_back(self, packed: Tensor) -> Tensor:
        """``[real tokens, features]`` -> ``[rows, tokens, features]``, 0 at padding."""
        padded: Tensor = _PutBack.apply(packed, self)  # type: ignore[no-untyped-call]
        return padded

    def spread(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Tokens at their places among zeros; each place is named once."""
        flat = tokens.new_zeros(self.rows * self.tokens, tokens.shape[-1])
        return flat.index_copy_(0, places, tokens).view(self.rows, self.tokens, -1)


class _Gathered(torch.autograd.Function):
    """Real tokens of rows.

    No two are of one place, so that a gradient is written to its place; torch, which cannot know
    it, adds up, and takes ten times as long.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return states.flatten(0, 1).index_select(0, places.once)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        return places.spread(gradients[0], places.once), None


class _PutBack(torch.autograd.Function):
    """Rows of real tokens; a row that stands there twice adds up what comes back to it."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Places) -> Tensor:
        ctx.places, ctx.tokens = places, len(packed)
        every = packed if places.which is None else packed.index_select(0, places.which)
        return places.spread(every, places.places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        back = gradients[0].flatten(0, 1).index_select(0, places.places)
        if places.which is not None:
            whole = back.new_zeros(ctx.tokens, back.shape[-1])
            back = whole.index_add_(0, places.which, back)
        return back, None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stands for gathered tokens between a layer's forward and its backward."""

    states: Tensor
    places: Places
    version: int

    def gathered(self) -> Tensor:
        if self.states._version != self.version:
            raise RuntimeError("the input of a linear layer was changed in place after the layer")
        return self.places.gathered(self.states)


class _KeepsRows:
    """While open, gathered tokens that a layer keeps for its gradient are kept as padded rows."""

    def __init__(self, states: Tensor, gathered: Tensor, places: Places) -> None:
        kept = _Kept(states.detach(), places, states._version)
        # by storage: what is handed over is another tensor of it, and in a plan none has an address
        storage, shape = gathered.untyped_storage()._cdata, gathered.shape

        def keep(saved: Tensor) -> Tensor | _Kept:
            same = saved.untyped_storage()._cdata == storage and saved.shape == shape
            return kept if same else saved

        def give(held: Tensor | _Kept) -> Tensor:
            return held.gathered() if isinstance(held, _Kept) else held

        self._hooks = saved_tensors_hooks(keep, give)

    def open(self) -> None:
        self._hooks.__enter__()

    def close(self) -> None:
        self._hooks.__exit__()


@dataclass(slots=True)
class _Gatherer:
    """The hooks of one part of a model."""

    part: str
    places: tuple[Places, ...] = ()
    within: dict[nn.Module, tuple[Places, _KeepsRows | None]] = field(default_factory=dict)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (self.places and args and isinstance(args[0], Tensor)):
            return None
        states = args[0]
        found = next((places for places in self.places if places.fits(states)), None)
        if found is None:
            return None
        gathered, keeps = found.gathered(states), None
        # who recomputes, or moves to the host, what is kept has hooks of its own
        if torch.is_grad_enabled() and not _others_keep():
            keeps = _KeepsRows(states, gathered, found)
            keeps.open()
        self.within[module] = found, keeps
        return gathered, *args[1:]

    def after(self, module: nn.Module, args: Any, output: Tensor | None) -> Tensor | None:
        found, keeps = self.within.pop(module, (None, None))
        if keeps is not None:
            keeps.close()
        return None if found is None or output is None else found.put_back(output)


@contextmanager
def unpadded(model: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, linear layers of a model skip what ``PLACES`` says is padding.

    Args:
        model: what is called: plain, or wrapped by PEFT; inside of what distributes it.
        parts: name -> a part of it without its head; ``PLACES`` holds a tuple of ``Places`` for
            each. A layer's input is known by its shape, so that no two of a part may have the same.
    """
    gatherers = [_Gatherer(part) for part in parts]

    def take(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        told = named.get(PLACES, {})
        for gatherer in gatherers:
            gatherer.places = told.get(gatherer.part, ())
        return args, {name: value for name, value in named.items() if name != PLACES}

    handles = [model.register_forward_pre_hook(take, with_kwargs=True)]
    for gatherer, part in zip(gatherers, parts.values(), strict=True):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(gatherer.before))
                # an error in the layer, as when memory ends, must close what was opened as well
                handles.append(module.register_forward_hook(gatherer.after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _others_keep() -> bool:
    """Whether hooks of others say how tensors are kept for a backward pass.

    Where this torch does not tell, they are taken to be there: then what was gathered is kept.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None
