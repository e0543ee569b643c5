"""A rehearsal in which a model may read numbers: what has no weight in it is computed for real.

A tower asks how large its pictures are, and cuts and orders their patches by it. Such numbers come
from the batch and not from weights. So operations whose tensors are all real are done for real,
and those in which a weightless one takes part stay without data.

Not here: the rehearsal (``rehearsal``), tensors that have shapes only (``weightless``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

AT_PLACES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Operations whose second argument says places, as numbers or as booleans."""

SMALL = 2**20
"""Numbers that are made for real out of nothing; more are a mask, or room for activations."""


class ReadableNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, inside of a mode of weightless tensors, numbers are there to be read."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, for real where all that it is given is."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(one, FakeTensor) for one in given):
            return _without_data(func, args, kwargs)
        if not given:
            shapes = tree_leaves(func(*args, **kwargs))
            if any(isinstance(one, Tensor) and one.numel() > SMALL for one in shapes):
                return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in AT_PLACES:  # how many places booleans name is known where they are real
        places = [found for one in args[1] for found in _numbered(one)]
        return func(args[0], places, *args[2:], **kwargs)
    if func is aten.masked_select.default and not isinstance(args[1], FakeTensor):
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
        with unset_fake_temporarily():
            count = int(args[1].expand(shape).sum())
        return args[0].new_empty(count)
    return func(*args, **kwargs)


def _numbered(places: Any) -> list[Any]:
    """Booleans as the numbers of the places that they name, one tensor for each dimension."""
    real = isinstance(places, Tensor) and not isinstance(places, FakeTensor)
    if not real or places.dtype != torch.bool:
        return [places]
    with unset_fake_temporarily():
        return list(places.nonzero(as_tuple=True))
