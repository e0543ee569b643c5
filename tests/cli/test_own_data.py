"""The rows of a run as its options cut, mix and divide them: the same for every command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli.own_data import train_rows
from counterpoint.cli.parts import call, load_parts
from counterpoint.options.settings import read_request
from counterpoint.runlog import read_run
from tests.cli.conftest import PAIRS, Command, write_pairs

BASE = "--model model --output_dir out --use_cpu --report_to none"
SHORT = f"train {BASE} --learning_rate 1e-3 --save_strategy no"


def asked(words: str) -> Any:
    return read_request([*BASE.split(), *words.split()])


def stock() -> None:
    """Three files: two of text, one of messages."""
    write_pairs(Path("a.jsonl"), PAIRS[:6])
    write_pairs(Path("b.jsonl"), [{**row, "prompt": f"Now: {row['prompt']}"} for row in PAIRS[:4]])
    asked = [{"ask": r["prompt"], "yes": r["chosen"], "no": r["rejected"]} for r in PAIRS[6:]]
    write_pairs(Path("c.jsonl"), asked)


YAML = """\
model: model
output_dir: out
use_cpu: true
report_to: none
learning_rate: 1e-3
save_strategy: "no"
per_device_train_batch_size: 4
datasets:
  - path: a.jsonl
  - b.jsonl:2
  - path: c.jsonl
    weight: 0.5
    columns: {prompt: ask, chosen: yes, rejected: no}
"""


def test_a_run_on_three_sets_takes_each_by_its_weight(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    stock()
    Path("run.yaml").write_text(YAML)
    said = command("train", "run.yaml", "--num_train_epochs", "1")
    assert said.code == 0, said.err
    assert "b.jsonl: 4 of 4 rows, weight 2: 8 of 17 pairs of an epoch (47.1%)" in caplog.text
    run = read_run(Path("out"))
    shares = run.facts["data"]["train"]["shares"]
    assert [(one["name"], one["pairs"], one["epoch"]) for one in shares] == [
        *[("a.jsonl", 6, 6), ("b.jsonl", 4, 8), ("c.jsonl", 6, 3)]
    ]
    assert run.metrics[-1]["step"] == 5  # 17 pairs, 4 a step
    assert command("report", "out").code == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "b.jsonl: 8 of 17 pairs, weight 2" in page
    again = command("doctor", "run.yaml", "--overwrite_output_dir")
    assert "5 steps an epoch" in again.out


def test_a_line_of_the_file_is_named_where_a_set_cannot_be_meant(
    workshop: Path, command: Command
) -> None:
    Path("run.yaml").write_text(YAML.replace("weight: 0.5", "weight: none"))
    said = command("train", "run.yaml")
    assert said.code == 2
    assert said.err.startswith("counterpoint: CP103 run.yaml line 11: datasets: ")


def test_every_command_sees_the_rows_that_are_trained_on(workshop: Path, command: Command) -> None:
    stock()
    words = "--datasets a.jsonl:1 b.jsonl#3:2 --eval_share 0.3 --seed 5"
    request = asked(words)
    parts = load_parts(request, call, weights=False)
    trained, held = list(parts.train_rows), list(parts.eval_rows)
    assert (len(trained), len(held)) == (6, 3)
    assert list(train_rows(request.run, request.config)) == trained
    assert not {row["prompt"] for row in trained} & {row["prompt"] for row in held}
    said = command("doctor", *BASE.split(), *words.split())
    assert "train: 6 of 6 rows are pairs" in said.out
    assert "eval: 3 of 3 rows are pairs" in said.out
    for number, row in enumerate(trained):
        shown = command("tokens", *BASE.split(), *words.split(), "--json", "--row", str(number))
        told = json.loads(shown.out)
        assert "".join(t["text"] for t in told["prompt"] if not t["special"]) == row["prompt"]
        own = [json.loads(line) for line in Path(told["set"]).read_text().splitlines()]
        assert own[told["row_of_set"]]["prompt"] == row["prompt"]


def test_what_is_held_out_is_evaluated_on_and_said(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    words = "--dataset pairs.jsonl --eval_share 0.25 --max_steps 1"
    said = command(*SHORT.split(), *words.split())
    assert said.code == 0, said.err
    assert "eval_share=0.25 holds out 3 of 12 rows, 3 of 12 prompts (seed 42)" in caplog.text
    data = read_run(Path("out")).facts["data"]
    assert {name: counts["kept"] for name, counts in data.items()} == {"train": 9, "eval": 3}
    assert "eval_loss" in read_run(Path("out")).metrics[-1]


def test_which_rows_are_held_out_is_no_matter_of_their_order(workshop: Path) -> None:
    def held(words: str) -> list[str]:
        parts = load_parts(asked(words), call, weights=False)
        return sorted(row["prompt"] for row in parts.eval_rows)

    before = held("--dataset pairs.jsonl --eval_share 0.25")
    write_pairs(Path("moved.jsonl"), random.Random(1).sample(PAIRS, len(PAIRS)))
    assert held("--dataset moved.jsonl --eval_share 0.25") == before
    assert held("--dataset pairs.jsonl --eval_share 0.25 --seed 1 --data_seed 42") == before
    assert held("--dataset pairs.jsonl --eval_share 0.25 --seed 1") != before


def test_the_first_rows_alone_are_read_of_a_file_of_a_stream_and_of_each_set(
    workshop: Path,
) -> None:
    stock()

    def prompts(words: str) -> list[str]:
        request = asked(f"{words} --max_rows 2 --max_steps 1")
        return [row["prompt"] for row in train_rows(request.run, request.config)]

    first = [row["prompt"] for row in PAIRS[:2]]
    assert prompts("--dataset pairs.jsonl") == first
    assert prompts("--dataset pairs.jsonl --streaming") == first
    assert prompts("--datasets a.jsonl b.jsonl#1") == [*first, f"Now: {first[0]}"]


@pytest.mark.parametrize(
    "words", ["--dataset pairs.jsonl --eval_share 0.3", "--max_rows 5 --datasets pairs.jsonl:2"]
)
def test_a_plan_is_of_the_rows_that_are_left(workshop: Path, command: Command, words: str) -> None:
    said = command("plan", *BASE.split(), *words.split(), "--memory", "8GiB", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)
