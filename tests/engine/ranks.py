"""One rank of two under DDP, by hand; a script of test_engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from counterpoint import ranks
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.face import Pass

PAIRS = 6


def loss_of(model: nn.Module, rows: list[int]) -> torch.Tensor:
    """A sum over rows, as a step's loss is one over pairs."""
    inputs = torch.arange(PAIRS * 3, dtype=torch.float64).reshape(PAIRS, 3).sin()[rows]
    return model(inputs).exp().sum()


def made() -> nn.Module:
    """The same model on every rank."""
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def main(folder: Path) -> None:
    """Take one step of two micro-batches on unequal shares."""
    torch.distributed.init_process_group("gloo")
    ranks.leave_at_exit()
    handler = SimpleNamespace(broadcast_buffers=False)
    engine = Ddp(SimpleNamespace(ddp_handler=handler))
    model = nn.parallel.DistributedDataParallel(made())
    share = [[0, 1], [2]] if ranks.rank() == 0 else [[3], [4, 5]]
    between = None
    for number, rows in enumerate(share):
        with engine.accumulating(model, last=number == 1):
            (loss_of(model, rows) * engine.loss_factor).backward()
        if number == 0:
            between = model.module.weight.grad.tolist()
    passes = engine.collective_passes
    handler.broadcast_buffers = True
    said = {
        "factor": engine.loss_factor,
        "passes": [one.value for one in sorted(passes, key=lambda one: one.value)],
        "sends buffers": Pass.FORWARD in engine.collective_passes,
        "between": between,
        "gradient": model.module.weight.grad.tolist(),
        "norm": float(engine.whole_norm(model.parameters())),
        "watches": engine.watches,
    }
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
