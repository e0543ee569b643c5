"""The planner's benchmark says what was missed, and its measurement sees what a step holds."""

from __future__ import annotations

import planner
import pytest
import step


def result(ratio: float) -> dict:
    held, peak = 100 * 2**20, 200 * 2**20
    found = round(peak / ratio)
    return {
        "row": "fp32",
        "predicted": {"peak": peak, "held": held, "seconds": 1.0},
        "measured_peak": found,
        "kept_peak": 250 * 2**20,
        "ratio": peak / found,
        "ratio_beyond_held": (peak - held) / (found - held),
    }


@pytest.mark.parametrize(("ratio", "missed"), [(1.14, False), (1.16, True), (0.84, True)])
def test_a_row_outside_of_the_goal_is_loud(ratio, missed):
    text = planner.table([result(ratio)])
    assert ("**missed**" in text) == missed
    assert ("**missed**" in planner.line(result(ratio))) == missed
    assert "| 200 MiB |" in text


@pytest.mark.skipif(
    not (step.DATA.is_dir() and step.CLEARS_PEAK.exists()), reason="no real data, or not Linux"
)
def test_the_planner_and_the_process_agree_on_the_layout_and_nearly_on_the_peak(
    tmp_path, monkeypatch
):
    small = {**step.SMALL, "num_hidden_layers": 2, "vocab_size": 4000}
    monkeypatch.setitem(planner.WORK, "tiny", {"name": "tiny", "model": small, "pairs": 4})
    step.tokenizer_for(4000).save_pretrained(tmp_path / "tokenizer")
    found = planner.compare("tiny", tmp_path)
    # a process full of other tests' memory has free blocks to use, and keeps others
    assert found["measured_peak"] > 0
    assert found["predicted"]["layout"] == "shared"
