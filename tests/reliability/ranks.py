"""One rank of two: goes on from checkpoints, and fails to write one. A script of test_ranks."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from counterpoint import SetupError
from tests.reliability.scenarios import SCENARIOS, trainer_of

OPTIONS: dict[str, Any] = {
    **SCENARIOS["dropout and a schedule"],
    "per_device_train_batch_size": 1,
    "logging_steps": 4,
    "ddp_backend": "gloo",
}


def main(folder: Path) -> None:
    """Be one rank."""
    warnings.filterwarnings("ignore")
    rank = int(os.environ["RANK"])
    trainer_of(OPTIONS, folder / "whole").train()
    for step in (2, 3):
        again = folder / f"after-{step}"
        if rank == 0:
            shutil.copytree(folder / "whole", again)
            for later in range(step + 1, 7):
                shutil.rmtree(again / f"checkpoint-{later}")
        torch.distributed.barrier()
        trainer_of(OPTIONS, again, drawn=9).train(resume_from_checkpoint="auto")
    (folder / f"failed-{rank}").write_text(failing(folder / "failed", rank))
    torch.distributed.destroy_process_group()


def failing(folder: Path, rank: int) -> str:
    """What a rank says when rank 1 alone cannot write its part of the second checkpoint."""
    from counterpoint.trainer import saving

    original = saving.write_tree

    def full(staged: Path, name: str, tree: Any) -> None:
        if name == "rank-1" and "checkpoint-2" in staged.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(staged, name, tree)

    saving.write_tree = full
    try:
        trainer_of(OPTIONS, folder).train()
    except SetupError as error:
        return str(error)
    return "trained"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
