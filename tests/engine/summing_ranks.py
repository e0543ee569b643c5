"""One rank of two that trains through an engine from outside; a script of test_engines."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist

from counterpoint import ranks
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.table import register_engine
from tests.invariance.ranks import CASES, flat, run_case

BUCKETS: list[int] = []


@register_engine
class Summing(Ddp):
    """DDP that adds gradients up over ranks, so that the loss needs no factor."""

    name = "summing"
    reduction = "sum"
    hooked: Any = None

    def accumulating(self, model: Any, *, last: bool) -> Any:
        if self.hooked is not model:
            model.register_comm_hook(None, added_up)
            self.hooked = model
        return super().accumulating(model, last=last)


def added_up(_, bucket):
    BUCKETS.append(0)
    sent = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sent.then(lambda future: future.value()[0])


def main(folder: Path) -> None:
    """Train the case on this rank's share."""
    from safetensors.torch import save_file

    warnings.filterwarnings("ignore")
    result = run_case(CASES["sigmoid"], folder / "run", int(os.environ["WORLD_SIZE"]))
    assert len(BUCKETS) >= len(result["gradients"])
    if ranks.rank() == 0:
        save_file(flat(result["gradients"]), folder / "gradients.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
