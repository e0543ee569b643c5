"""No change of numbers without proof: a seeded run gives the numbers that are on file."""

from __future__ import annotations

import json

import pytest

from tests.house.golden import FILE, run
from tests.steps import OBJECTIVES

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_seeded_run_gives_the_recorded_numbers(objective: str) -> None:
    numbers = run(objective)
    assert numbers.keys() == RECORDED[objective].keys()
    for name, values in numbers.items():
        assert values == pytest.approx(RECORDED[objective][name], rel=1e-9, abs=1e-12), name


def test_the_file_holds_every_objective_and_no_other() -> None:
    assert set(RECORDED) == set(OBJECTIVES)
