"""What the doctor says of several sets in one run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from datasets import Dataset

from counterpoint.data.mixture import Mixture, Part
from counterpoint.quickstart.task import preference_pairs
from tests.doctor.patients import PAIRS, Patient, healthy


def mixed(whole: Patient, second: list[dict[str, Any]], weight: Any = 1) -> Patient:
    """A run on its own rows and on those of another set."""
    rows = [*whole.rows, *second]
    parts = [
        Part(name, Fraction(w), len(mine), Dataset.from_list(mine))
        for name, w, mine in (("own.jsonl", 1, whole.rows), ("more.jsonl", weight, second))
    ]
    return replace(whole, rows=Mixture(Dataset.from_list(rows), parts))


def fresh(count: int) -> list[dict[str, Any]]:
    """Rows of the quickstart's own task that are in no other set of this file."""
    return [pair.row for pair in preference_pairs(PAIRS + count, seed=0)][PAIRS:]


def test_rows_of_two_sets_are_found_and_named(tmp_path: Path) -> None:
    whole = healthy(str(tmp_path / "out"))
    assert not [f for f in mixed(whole, fresh(4)).examined().findings if f.code == "CW134"]
    repeated = [*fresh(2), whole.rows[7], whole.rows[3], fresh(1)[0]]
    found = [f for f in mixed(whole, repeated).examined().findings if f.code == "CW134"]
    assert [f.seen for f in found] == [
        "train: 2 of 5 rows of more.jsonl are rows of own.jsonl too; row 2 there is row 7 of "
        "own.jsonl."
    ]
    assert found[0].rows == (162, 163)


def test_steps_are_of_the_epoch_that_the_weights_make(tmp_path: Path) -> None:
    whole = healthy(str(tmp_path / "out"))  # 160 rows, 128 pairs a step
    plain = next(f for f in whole.examined().findings if f.code == "CN121")
    assert "2 steps an epoch" in plain.seen
    heavy = mixed(whole, fresh(32), weight=10).examined()
    assert "4 steps an epoch" in next(f for f in heavy.findings if f.code == "CN121").seen


def test_a_set_without_a_pair_is_an_error(tmp_path: Path) -> None:
    whole = healthy(str(tmp_path / "out"))
    bad = [{**row, "chosen": ""} for row in fresh(2)]
    dropping = replace(whole, options={**whole.options, "invalid_rows": "drop"})
    found = [f for f in mixed(dropping, bad).examined().findings if f.code == "CP209"]
    assert len(found) == 1
    assert "none of the 2 rows of more.jsonl is a pair" in found[0].seen
