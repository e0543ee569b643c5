"""A run of TPO from its rows to its report: every command that reads them knows the third one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import PAIRS, Command, write_pairs

OF_RUN = ("--model", "model", "--dataset", "three.jsonl", "--loss_type", "tpo", "--beta", "0.01")


@pytest.fixture
def three(workshop: Path) -> Path:
    """Rows with gold completions under TRL's name for them."""
    write_pairs(
        workshop / "three.jsonl", [{**row, "reference": f"{row['chosen']}!"} for row in PAIRS]
    )
    return workshop


def test_every_command_that_reads_rows_reads_the_third_completion(
    three: Path, command: Command
) -> None:
    said = command("train", *OF_RUN, "--output_dir", "run", "--max_steps", "2", "--use_cpu")
    assert said.code == 0, said.err
    run = json.loads(Path("run/run.json").read_text())
    assert "mean over the step's gold tokens" in json.dumps(run["objective"])
    account = run["data"]["train"]
    assert account["tokens"]["gold"] > account["tokens"]["chosen"]
    assert sum(account["lengths"]["gold"]["counts"]) == len(PAIRS)

    for words in (
        ("doctor", *OF_RUN, "--use_cpu", "--json"),
        ("plan", *OF_RUN, "--use_cpu"),
        ("evaluate", "run", "--dataset", "three.jsonl", "--use_cpu"),
        ("report", "run"),
    ):
        said = command(*words)
        assert said.code < 2, (words, said.err)
    shown = json.loads(command("tokens", *OF_RUN, "--json").out)
    assert len(shown["gold"]) > len(shown["chosen"])
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "lengths-0/gold" in page

    Path("two.jsonl").write_text(Path("pairs.jsonl").read_text())
    said = command("evaluate", "run", "--dataset", "two.jsonl", "--use_cpu")
    assert said.code == 2
    assert "CP236" in said.err
    said = command("evaluate", "run", "--dataset", "two.jsonl", "--loss_type", "sigmoid")
    assert said.code == 0, said.err
