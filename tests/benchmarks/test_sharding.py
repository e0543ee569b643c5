"""The benchmark of shards tells losing rows, keeps half of the state, and meets on real ranks."""

from __future__ import annotations

import pytest
import sharding
import step

from tests.reliability.trials import TORTURE

ROW = {
    "row": "fp32",
    "ratio": {"median": 1.2, "min": 0.9, "max": 1.5},
    "state": {"ddp": 200 * 2**20, "fsdp2": 100 * 2**20},
    "rest": 50 * 2**20,
    "peak": 160 * 2**20,
}


@pytest.mark.parametrize(("median", "loses"), [(1.2, True), (0.95, False)])
def test_a_row_that_loses_says_so(median, loses):
    ratio = {**ROW["ratio"], "median": median}
    line = sharding.table([{**ROW, "ratio": ratio}]).splitlines()[2]
    assert f"| {median:.2f} (0.90 to 1.50)" in line
    assert ("**loses**" in line) == loses
    assert "| 200 MiB, 100 MiB |" in line
    # half of DDP's state and the rest, over what was measured
    assert "| 150 MiB, 0.94 of the measured | 160 MiB |" in line


def test_memory_that_was_not_measured_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "RESULTS", tmp_path)
    (tmp_path / "plan_sharded.json").write_text('{"rows": [{"row": "fp32", "peak": 3}]}')
    assert sharding.remembered("fp32")["peak"] == 3
    with pytest.raises(SystemExit, match=r"plan_sharded\.py --rows lora"):
        sharding.remembered("lora")


@pytest.mark.skipif(not TORTURE, reason="two ranks, a minute")
@pytest.mark.skipif(not step.DATA.is_dir(), reason="no real data")
def test_ranks_hold_half_of_the_state(tmp_path):
    step.tokenizer_for(4000).save_pretrained(tmp_path / "tokenizer")
    memory = {"peak": 3, "held": 1, "measured": 3}
    found = sharding.on_ranks("fp32", 1, memory, tmp_path)
    # a weight is cut by rows; buffers are whole on every rank
    assert found["state"]["fsdp2"] == pytest.approx(found["state"]["ddp"] / 2, rel=1e-3)
    assert found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert found["rest"] == 2
