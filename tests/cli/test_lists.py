"""Every command reads rows that list several rejected completions as the pairs that they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, write_pairs

LISTED: list[dict[str, Any]] = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f" It is {2 * n}.",
        "rejected": [f" {n}, I am.", f" {n} and {n}.", " No."][: 1 + n % 3],
        "reference": f"R{n}",
    }
    for n in range(1, 7)
]
APART: list[dict[str, Any]] = [
    {**row, "rejected": one, "weight": 1 / len(row["rejected"])}
    for row in LISTED
    for one in row["rejected"]
]
SMALL = ("--use_cpu", "--resamples", "50")


@pytest.fixture
def lists(workshop: Path) -> Path:
    write_pairs(workshop / "lists.jsonl", LISTED)
    write_pairs(workshop / "apart.jsonl", APART)
    return workshop


def test_training_on_lists_is_training_on_their_pairs(lists: Path, command: Command) -> None:
    told: dict[str, Any] = {}
    for name in ("lists", "apart"):
        data = ("--dataset", f"{name}.jsonl", "--eval_dataset", f"{name}.jsonl")
        rest = ("--max_steps=2", "--eval_strategy=steps", "--eval_steps=2", "--use_cpu")
        # shuffled, lists stay whole, and pairs in rows of their own do not
        rest += ("--train_sampling_strategy=sequential",)
        said = command("train", "--model", "model", *data, "--output_dir", name, *rest)
        assert said.code == 0, said.err
        facts = json.loads(Path(name, "run.json").read_text())["data"]["train"]
        lines = Path(name, "metrics.jsonl").read_text().splitlines()
        numbers = [{k: v for k, v in json.loads(x).items() if "loss" in k} for x in lines]
        told[name] = facts, numbers
    (of_lists, numbers), (of_pairs, expected) = told["lists"], told["apart"]
    assert numbers == expected
    assert of_lists["digest"] == of_pairs["digest"]
    assert (of_lists["listed_rows"], of_lists["listed_pairs"], of_lists["rows"]) == (6, 12, 12)
    assert (of_pairs["listed_rows"], of_pairs["listed_pairs"]) == (0, 0)


def test_tokens_and_the_doctor_tell_pairs_from_rows(lists: Path, command: Command) -> None:
    words = ("--model", "model", "--dataset", "lists.jsonl")
    said = command("tokens", *words, "--row", "3")
    assert said.code == 0, said.err
    assert "row 3 of lists.jsonl\n  It is rejected[1] of row 1 in the set" in said.out
    assert "weight 0.333333" in said.out
    assert command("tokens", *words, "--row", "12").code != 0
    told = command("doctor", *words, "--output_dir", "out", "--use_cpu", "--json")
    found = [one["seen"] for one in json.loads(told.out)["findings"] if one["code"] == "CN201"]
    assert "12 of 12 rows are pairs" in found[0]
    assert "12 of them from 6 rows that list their rejected completions" in found[0]


def test_an_evaluation_is_of_pairs_and_references_stay_with_their_rows(
    lists: Path, command: Command
) -> None:
    kept = {}
    for name in ("lists", "apart"):
        written = ("--generate", "12", "--max_new_tokens", "2", "--out", f"kept-{name}")
        data = ("--dataset", f"{name}.jsonl")
        said = command("evaluate", "model", *data, "--json", *written, *SMALL)
        assert said.code == 0, said.err
        sets = json.loads(said.out)["after"]["sets"]
        kept[name] = [one["measures"] for one in sets.values()]
        assert [one["pairs"] for one in sets.values()] == [12]
        files = sorted(Path(f"kept-{name}").rglob("*.jsonl"))
        lines = [json.loads(x) for file in files for x in file.read_text().splitlines()]
        kept[f"{name}, written"] = [line.get("reference") for line in lines]
    assert kept["lists"] == kept["apart"]
    assert kept["lists, written"] == kept["apart, written"]
    assert {"R1", "R6"} <= set(kept["lists, written"])
