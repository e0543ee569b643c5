"""The benchmark behind docs/from-trl.md still measures what it says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_single_differences_can_be_measured_again():
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    done = subprocess.run(
        [sys.executable, "benchmarks/differences.py", "--only", "completion_limit", "logged_nll"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Counterpoint  the longest completion has 8 tokens" in done.stdout
    assert "TRL           0, so that" in done.stdout
