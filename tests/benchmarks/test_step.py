"""What the benchmark of whole steps says is what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import step
import torch
from torch import nn

MB = 2**20


class FakeTrainer:
    """Steps with a gradient and two moments of each weight, and some memory more."""

    def __init__(self, extra: int) -> None:
        self.model = nn.Linear(4096, 1024, bias=False)
        self.extra, self.moments = extra, []

    def add_callback(self, callback) -> None:
        self.callback = callback

    def train(self) -> None:
        _filled(512 * MB)  # as the first step's proofs might
        weight = self.model.weight
        for _ in range(step.WARM_UP + 2):
            weight.grad = torch.ones_like(weight)
            _filled(self.extra)
            if not self.moments:
                self.moments = [torch.ones_like(weight) for _ in range(2)]
            self.model.zero_grad()
            self.callback.on_step_end(SimpleNamespace(), None, None)


def _filled(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


@pytest.mark.skipif(not step.CLEARS_PEAK.exists(), reason="needs Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the memory of a CPU")
def test_memory_is_the_peak_of_the_timed_steps_over_what_must_be_held():
    # in a process of its own, as the benchmark is, that gives back at once what it frees: else
    # glibc keeps a freed gradient or not, by how blocks happen to lie
    code = (
        f"import sys; sys.path[:0] = {[str(step.ROOT), str(step.ROOT / 'benchmarks')]}\n"
        "import json, step\n"
        "from tests.benchmarks.test_step import MB, FakeTrainer\n"
        "print(json.dumps(step.train(FakeTrainer(160 * MB))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["seconds"]) == 2
    # pages and small objects come and go; weights, gradients and moments are 16 MB each
    assert result["peak_mb"] == pytest.approx(160, abs=6)


def _result(row: str, faster: float) -> dict:
    side = {"pairs_per_second": 1.0, "min": 0.5, "max": 2.0, "peak_mb": 100.0}
    return {
        "row": row,
        "pairs": 8,
        "rounds": 3,
        "trl": side,
        "counterpoint": {**side, "pairs_per_second": faster, "peak_mb": 20.0},
        "speed_ratio": faster,
        "memory_ratio": 0.2,
        "machine": {"cores": 2},
    }


def test_a_row_that_is_measured_again_leaves_the_others(tmp_path):
    path = tmp_path / "step.json"
    for row, faster in (("ted-fp32", 2.0), ("hh-fp32", 3.0), ("ted-fp32", 4.0)):
        step.keep(_result(row, faster), path)
    kept = json.loads(path.read_text())["rows"]
    assert [(row["row"], row["speed_ratio"]) for row in kept] == [
        ("hh-fp32", 3.0),
        ("ted-fp32", 4.0),
    ]


def test_a_missed_goal_is_said_beside_its_row():
    rows = [_result("hh-fp32", 4.5), _result("wide-vocabulary-bf16", 7.7)]
    met, missed = step.table(rows, goals=True).splitlines()[2:4]
    assert met.endswith("| 4.5 × (goal 4) | 20 % (goal 25 %) |")
    assert missed.endswith("| 7.7 × (goal 15: **missed**) | 20 % (goal 25 %) |")
    assert "missed" in step.line(rows[1])
    assert "missed" not in step.line(rows[0])
    assert "goal" not in step.table(rows, goals=False)
