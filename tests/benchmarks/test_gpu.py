"""Where there is no GPU, its benchmark still runs: in earnest not, on tiny shapes completely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest

from tests.reliability.trials import TORTURE

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
@pytest.mark.skipif(not TORTURE, reason="a minute: make torture")
def test_every_part_runs_on_tiny_shapes(tmp_path):
    done = _run("--dry-run", "--into", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert set(results) == {"machine", "peak", *gpu.PARTS}
    assert [run for part in gpu.PARTS for run in results[part] if "failed" in run] == []
    assert results["equality"][0]["shared, fp32"] < 1e-5
    by_layout = {(run["layout"], run["bf16"]): run["losses"] for run in results["equality"][1:]}
    assert by_layout["shared", False] == pytest.approx(by_layout["padded", False], rel=1e-5)
    assert all(run["planned_mb"] > 0 for run in results["mfu"])
    assert all(run["seconds"]["pairwise"] > 0 for run in results["kernels"])
    ours = next(run for run in results["steps"] if run["side"] == "ours")
    assert (ours["layout_used"], ours["trial"]) == ("shared", None)  # a CPU is not asked
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


def test_measurements_keep_to_their_time_and_say_what_was_left_out(tmp_path):
    over = gpu.Deadline(0.0)
    assert over.left == 0.0
    assert gpu.in_time("head", {}, tmp_path, over) == {"failed": "left out: there was no time"}
    ended = gpu.in_time("head", {}, tmp_path, gpu.Deadline(1.5))  # importing torch takes longer
    assert ended["failed"].startswith("ended after 1 seconds") or "KeyError" in ended["failed"]


def test_a_part_that_did_not_begin_keeps_its_results(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.json").write_text(json.dumps({"mfu": ["measured before"]}))
    monkeypatch.setattr(gpu, "PARTS", {name: gpu.PARTS[name] for name in ("kernels", "mfu")})
    monkeypatch.setattr(gpu, "part_of", lambda name, *facts, **more: [name])
    monkeypatch.setattr(gpu.step, "tokenizer_for", lambda size: gpu.growth.tokenizer())
    monkeypatch.setattr(gpu.roofline, "matrix_rate", lambda *facts: 1.0)
    monkeypatch.setattr(gpu, "page", lambda results: "")
    monkeypatch.setattr(gpu.Deadline, "left", property(lambda deadline: next(left)))
    left = iter([100.0, 0.0])
    gpu.run(["kernels", "mfu"], tmp_path, dry=False, minutes=1)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["kernels"] == ["kernels"]
    assert results["mfu"] == ["measured before"]
    assert "mfu is left out: 1 minutes are over" in capsys.readouterr().out


def test_a_plan_is_held_against_what_was_measured():
    ran = {"shape": "8B", "layout": "shared", "planned_mb": 1100.0, "whole_peak_mb": 1000.0}
    wide = {**ran, "layout": "padded", "planned_mb": 1200.0}
    lost = {"shape": "0.5B", "layout": "shared", "failed": "ended after 240 seconds"}
    assert gpu.plan_table([ran, wide, lost]).splitlines()[2:] == [
        "| 8B, shared | 1,100 | 1,000 | 1.10 |",
        "| 8B, padded | 1,200 | 1,000 | 1.20 (goal 0.85 to 1.15: **missed**) |",
        "| 0.5B, shared | ended after 240 seconds | | |",
    ]


def test_what_a_run_measured_of_its_layouts_is_told():
    trial = {"seconds": {"shared": 0.5, "padded": None}, "pairs": 12, "rounds": 1}
    rows = [{"row": "8B", "layout_used": "shared", "trial": trial}, {"row": "8B", "side": "TRL"}]
    assert gpu.trial_text(rows).splitlines()[2:] == [
        "- 8B: shared 500 ms, padded out of memory for 12 pairs, and used shared"
    ]
    assert gpu.trial_text(rows[1:]) == "No layout was timed."


def test_kernels_stand_side_by_side_with_their_proofs():
    row = {"heads": 32, "kv_heads": 8, "width": 128, "window": None}
    right = {**row, "differs": {"varlen": None}, "seconds": {"varlen": 1e-3, "pairwise": 4e-3}}
    wrong = {**row, "window": 64, "differs": {"varlen": "values differ"}, "seconds": {}}
    assert gpu.kernel_table([right, wrong]).splitlines()[2:] == [
        "| 32 / 8, 128, none | varlen: right | 1.00 | 4.00 |",
        "| 32 / 8, 128, 64 | varlen: values differ |  |  |",
    ]


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
