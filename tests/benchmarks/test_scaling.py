"""The table of large runs is predicted and says so, and what it says follows from the ranks."""

from __future__ import annotations

import json
from itertools import product

import pytest
import scaling_table
import step

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def test_what_a_device_holds_falls_with_the_ranks_and_the_break_even_rises(monkeypatch):
    monkeypatch.setitem(scaling_table.MODELS, "tiny", TINY)
    few, some, many = scaling_table.predicted("tiny")
    # weight, gradient and two moments in float32; rows are cut evenly by 8 and by 64
    assert few["state"] == pytest.approx(16 * few["weights"] / 8, rel=0.01)
    assert some["state"] == pytest.approx(few["state"] / 8, rel=0.01)
    assert few["peak"] > some["peak"] > many["peak"]
    assert few["most"] < some["most"] < many["most"]
    # each receives what the others hold of it
    assert few["traffic"] / some["traffic"] == pytest.approx((7 / 8) / (63 / 64), rel=1e-3)
    assert few["nodes"] == 1
    # the same exchange at a ninth of the speed, nearly
    assert some["break_even"] > 8 * few["break_even"]
    assert few["break_even"] == pytest.approx(
        some["break_even"] / 9 * (7 / 8) / (63 / 64), rel=0.01
    )


def test_the_table_says_that_it_is_predicted_and_what_does_not_fit(monkeypatch):
    row = {
        "model": "70B",
        "weights": 70.6e9,
        "ranks": 8,
        "state": 141e9,
        "traffic": 490e9,
        "peak": 200e9,
        "most": scaling_table.SIZES[0] - 1,
        "break_even": 1300,
        "mfu": {"4096": 0.39, "16384": 0.4},
    }
    text = scaling_table.table([row, {**row, "most": scaling_table.SIZES[0]}])
    first, second = text.splitlines()[2:4]
    assert text.startswith("| predicted, not measured |")
    assert "**does not fit**" in first
    assert "| 4,096 |" in second


def test_the_kept_results_are_marked_and_have_every_row():
    found = json.loads((step.RESULTS / "scaling.json").read_text())
    assert found["predicted"] is True
    wanted = [*product(scaling_table.MODELS, scaling_table.RANKS)]
    assert [(row["model"], row["ranks"]) for row in found["rows"]] == wanted
    assert [*scaling_table.MODELS] == ["8B", "32B", "70B"]
    assert scaling_table.RANKS == (8, 64, 512)
