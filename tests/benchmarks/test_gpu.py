"""Where there is no GPU, its benchmark still runs: in earnest not, on tiny shapes completely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest

ROOT = Path(__file__).parents[2]
NO_GPU = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/gpu.py", *arguments],
        cwd=ROOT,
        env=NO_GPU,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_part_runs_on_tiny_shapes(tmp_path):
    done = _run("--dry-run", "--into", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert set(results) == {"machine", "peak", *gpu.PARTS}
    assert [run for part in gpu.PARTS for run in results[part] if "failed" in run] == []
    assert results["equality"][0]["shared, fp32"] < 1e-5
    by_layout = {(run["layout"], run["bf16"]): run["losses"] for run in results["curve"]}
    assert by_layout["shared", False] == pytest.approx(by_layout["padded", False], rel=1e-5)
    assert gpu.page(results) in done.stdout


def test_without_cuda_it_says_so_in_one_line_and_succeeds():
    done = _run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "no CUDA device here: nothing measured (python benchmarks/gpu.py --dry-run tries it)"
    ]


def test_a_device_has_the_peak_its_maker_states():
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == gpu.peak_of("NVIDIA H200") == 989e12
    assert gpu.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu.peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu.peak_of("Some other device") is None


def test_a_side_that_fails_keeps_its_row():
    failed = gpu.attempt("train", {"pairs": 1}, Path("nowhere"))
    assert failed == {"failed": "KeyError: 'steps'"}
    ran = {"row": "a", "side": "ours", "pairs": 8, "seconds": [2.0, 4.0], "peak_mb": 1200.0}
    lost = {"row": "a", "side": "TRL", "failed": "OutOfMemoryError: CUDA out of memory. Tried"}
    assert gpu.step_table([lost, ran]).splitlines()[2] == (
        "| a | out of memory | 3.0 (2.0 to 4.0), 1,200 |"
    )


def test_recovery_counts_only_where_something_was_recovered_from():
    def run(budget: int, losses: list[float], warnings: list[str], **more: str) -> dict:
        return {"budget": budget, "losses": losses, "warnings": warnings, **more}

    rows = [
        {"layout": "shared", **run(10**9, [2.0, 1.0], ["cut again"])},
        {"layout": "shared", **run(100, [2.0, 1.001], [])},
        {"layout": "padded", **run(10**9, [], [], failed="OutOfMemoryError: no")},
        {"layout": "padded", **run(100, [2.0, 1.0], [])},
    ]
    assert gpu.recovery_text(rows).splitlines()[2:] == [
        "- shared: went on with 1 warning, losses differ by 1e-03",
        "- padded: the run stopped (1,000,000,000 tokens: OutOfMemoryError: no)",
    ]
    told_by_both = [{**row, "warnings": ["something else"]} for row in rows]
    assert "shared: everything fitted" in gpu.recovery_text(told_by_both)
