"""Every tensor from its birth to its death: what a computation holds, operation by operation.

Not here: what is computed (``rehearsal``), and buffers that live inside one operation.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ADD, ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
GROUPED = torch.ops.aten._grouped_mm.default


@dataclass(slots=True)
class LedgerEntry:
    """The memory behind some tensors that are views of each other.

    Args:
        size: bytes.
        kind: what it is kept for.
        birth: how many were born before it.
        death: how many had been born when it went; None while it is there.
    """

    size: int
    kind: str
    birth: int
    death: int | None = None


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, notes all memory that operations make, on real tensors or fake ones.

    Args:
        kind: what the first memory is kept for; set ``kind`` as the computation goes on.
        there: tensors whose memory was there before, and is not noted.
    """

    def __init__(self, kind: str, there: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind
        self.entries: list[LedgerEntry] = []
        self.operations = 0
        """Of products and of attention, a multiplication and an addition apart."""
        self._old = {tensor.untyped_storage()._cdata for tensor in there}
        self._there: dict[int, tuple[LedgerEntry, weakref.ref[Any]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note what is new in its results."""
        if func is ADD and not torch.is_grad_enabled() and _are_fake_and_alike(*args[:2]):
            # gradients that meet are added in place by autograd, but not those of a subclass of
            # tensors, which fake ones are
            func = ADD_IN_PLACE
        if func is GROUPED and isinstance(args[0], FakeTensor):
            result = _grouped(args, kwargs or {})
        else:
            result = func(*args, **(kwargs or {}))
        self.operations += _operations(func, args, kwargs or {}, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def rename(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what the memory of tensors that are there has been kept for, from its birth on."""
        for tensor in tensors:
            known = self._there.get(tensor.untyped_storage()._cdata)
            if known is not None:
                known[0].kind = kind

    def held(self) -> list[dict[str, int]]:
        """Bytes by kind at each birth, the born included."""
        changes: list[list[tuple[str, int]]] = [[] for _ in range(len(self.entries) + 1)]
        for entry in self.entries:
            changes[entry.birth].append((entry.kind, entry.size))
            if entry.death is not None:
                changes[entry.death].append((entry.kind, -entry.size))
        now: dict[str, int] = {}
        line = []
        for at_once in changes[:-1]:
            for kind, size in at_once:
                now[kind] = now.get(kind, 0) + size
            line.append(dict(now))
        return line

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._there or key in self._old:
            return
        entry = LedgerEntry(storage.nbytes(), self.kind, len(self.entries))
        self.entries.append(entry)
        self._there[key] = entry, weakref.ref(storage, lambda _: self._end(key))

    def _end(self, key: int) -> None:
        entry, _ = self._there.pop(key)
        entry.death = len(self.entries)


def _operations(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if func is GROUPED:
        # each row goes through one of the matrices
        rows, matrices = args[0].shape, args[1].shape
        return int(2 * rows[-2] * rows[-1] * matrices[-1])
    known = flop_registry.get(func._overloadpacket)
    return 0 if known is None else int(known(*args, **kwargs, out_val=result))


def _are_fake_and_alike(one: Any, other: Any) -> bool:
    both = isinstance(one, FakeTensor) and isinstance(other, FakeTensor)
    return both and (one.shape, one.dtype) == (other.shape, other.dtype)


def _grouped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The product of experts, whose description knows bfloat16 alone, in any dtype."""
    narrow = [
        arg.to(torch.bfloat16) if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in args
    ]
    product: Tensor = GROUPED(*narrow, **kwargs)
    return product.to(args[0].dtype)
