"""A process leaves its group before Python ends, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.test_ranks_die import environment, free_port

SCRIPT = """
import atexit, sys, warnings
warnings.simplefilter("ignore")
import torch.distributed as dist
atexit.register(lambda: print("left" if not dist.is_initialized() else "still in its group"))
from pathlib import Path
from tests.reliability.scenarios import trainer_of
trainer = trainer_of({}, Path(sys.argv[1]), max_steps=1, ddp_backend="gloo")
assert dist.is_initialized()
trainer.train()
if sys.argv[2] == "fails":
    raise ValueError("the script's own")
"""


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("fails", 1)])
def test_a_script_of_one_rank_has_left_its_group_when_python_ends(
    tmp_path: Path, how: str, code: int
) -> None:
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    path = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how],
        env={**environment(), **rank, "MASTER_PORT": str(free_port()), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "left"
