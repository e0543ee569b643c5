"""The benchmark of large sets does what it measures, and counts what it may lose."""

from __future__ import annotations

import data_at_size
import pytest

from counterpoint.data import parts

COST = {"seconds": 0.25, "mb": 12.4}
RESULTS = {
    "pairs": 10**9,
    "order": COST,
    "listed": {"1e7": {"seconds": 1.2, "mb": 460.0}},
    "resumed": COST,
    "dealt": {"512": COST},
    "digested": {"now": {"pairs_per_second": 1e5}, "0.4": {"pairs_per_second": 4e5}},
    "started": {"seconds": 70.0, "mb": 90.0, "parts": 954},
    "interval": {"prompts": 10**5, "now": COST, "0.4": COST},
}
SMALL = {"order": 10**9, "resumed": 40_000, "dealt": 4096, "started": 3_000_000}


@pytest.mark.parametrize("what", data_at_size.WORK)
def test_each_measurement_runs_at_another_size(what, monkeypatch, tmp_path):
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path))
    found = data_at_size.WORK[what](SMALL.get(what, 500))
    assert found["seconds"] > 0
    assert found["mb"] >= 0
    if what == "started":
        assert found["parts"] == 3


def test_rows_on_disk_are_prepared_in_parts_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parts, "PART_ROWS", 50)
    data_at_size.write_rows(tmp_path / "rows.jsonl", 120)
    assert len({*(tmp_path / "rows.jsonl").read_text().splitlines()}) == 120
    data_at_size.saved(120, tmp_path)
    for _ in range(2):
        found = data_at_size.prepared(120, tmp_path)
        assert found["parts"] == 3
        assert found["seconds"] > 0
        assert found["own_mb"] >= 0


def test_rows_of_real_files_are_a_part_of_the_table():
    found = {"seconds": 90.0, "mb": 300.0, "own_mb": 20.0, "parts": 2}
    lines = data_at_size.table(
        {**RESULTS, "real": {"rows": 1_200_000, "saved": found, "first": found, "later": found}}
    ).splitlines()
    assert (
        "| the same prepared the first time, in 2 parts, on one rank | not measured |" in lines[-4]
    )
    assert lines[-4].endswith("| 90 s, 300 MB, of which 20 MB its own |")
    assert len(lines) == len(data_at_size.table({**RESULTS, "real": None}).splitlines()) + 3


def test_what_was_predicted_is_called_so():
    text = data_at_size.table(RESULTS)
    assert "| 120 s, 45 GB (predicted) | 250.0 ms, 12 MB |" in text
    assert "| 0.7 hours on every rank (predicted) | 2.8 hours, shared out" in text
    assert text.endswith(
        "102 MB (goal 100 MB: **missed**) and 70.2 s (goal 60 s: **missed**), beside the pairs "
        "themselves."
    )
