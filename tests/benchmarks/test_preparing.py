"""The benchmark of preparing measures rows that are all different, and says what was missed."""

from __future__ import annotations

import preparing
import pytest
import step


@pytest.mark.skipif(not step.DATA.is_dir(), reason="no real data")
def test_no_two_of_the_many_rows_are_the_same():
    rows = list(preparing.many_rows(6000))
    assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == 6000


def test_the_table_tells_rates_goals_and_both_starts():
    results = {
        "pairs": 2303,
        "trl": {"pairs_per_second": 700, "min": 690, "max": 710},
        "counterpoint": {"pairs_per_second": 2900, "min": 2800, "max": 3100},
        "ratio": 2900 / 700,
        "start": {"rows": 100_000, "first": 31.04, "second": 0.46},
    }
    _, _, row, _, start = preparing.table(results).splitlines()
    assert row.endswith(
        "| 700 (690 to 710) | 2,900 (2,800 to 3,100) (goal 3000: **missed**) | 4.1 × (goal 4) |"
    )
    assert "100,000 rows took 31.0 s at the first start and 0.5 s at the second" in start
