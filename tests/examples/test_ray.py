"""A Ray worker is killed in the middle: the run ends as the one that nobody hit, to the bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.runlog import read_run
from tests.reliability.scenarios import differences, lines

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install '.[ray]')"
)
def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_worker_niceness": "0",  # or they wait for all else that runs here
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ray_trial.py")), tmp_path],
        env={**os.environ, **quiet, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert (broken / "killed").is_file()
    weights = [(run / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]
    assert differences(whole / "checkpoint-12", broken / "checkpoint-12", checked=False) == []
    assert lines(broken) == lines(whole)
    facts = read_run(broken).facts
    assert facts["resumed"][-1]["step"] == 4
    assert [one["ranks"] for one in facts["segments"]] == [2]
