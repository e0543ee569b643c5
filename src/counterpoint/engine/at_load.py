"""While transformers reads a model in shards: what no file holds is filled in, each rank its part.

transformers fills tables of positions that are computed and not saved, as those of Marian and
PEGASUS. It copies the whole table into the weight, which a part of one refuses to take.

Not here: who is loaded in shards (``fsdp2.sharding_keywords``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@contextmanager
def parts_filled(*, shards: bool) -> Iterator[None]:
    """Within it transformers' initialisation copies a whole tensor into a rank's part of one.

    Args:
        shards: whether a model is loaded in shards; otherwise nothing is changed.
    """
    if not shards:
        yield
        return
    from transformers import initialization

    theirs = initialization.copy_

    def copy_(tensor: Tensor, other: Tensor) -> Tensor:
        if isinstance(tensor, DTensor) and not isinstance(other, DTensor):
            where: Any = {"device_mesh": tensor.device_mesh, "placements": tensor.placements}
            # None: every rank has computed the same, and takes its part without asking another
            other = distribute_tensor(other.to(tensor.device), src_data_rank=None, **where)
        filled: Tensor = theirs(tensor, other)
        return filled

    initialization.copy_ = copy_
    try:
        yield
    finally:
        initialization.copy_ = theirs
