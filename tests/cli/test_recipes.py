"""The recipe that a card prints runs as it is printed, and makes the same run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from datasets import load_dataset

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.report.comparison import differing
from counterpoint.report.objective import adapter_options
from counterpoint.runlog import read_run
from tests.cli.conftest import PAIRS, Command, write_pairs

RUN: dict[str, Any] = {
    "model": "model",
    "dataset": "data/pairs.jsonl",
    "output_dir": "first",
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "max_length": 64,
    "logging_steps": 1,
    "use_cpu": True,
    "doctor": False,
}

RUNS: dict[str, dict[str, Any]] = {
    "an adapter": {"lora_r": 2, "lora_alpha": 3, "lora_target_modules": ["q_proj"]},
    "constraints": {
        "cpo_alpha": 0.3,
        "constraints": [
            {"kind": "bc", "slack": 0.05},
            {"kind": "safety", "name": "kept", "slack": 0.1, "data": "data/kept.jsonl"},
        ],
    },
    "an evaluation": {"eval_dataset": "data/held-out.jsonl", "eval_strategy": "epoch"},
    "several sets": {
        "eval_dataset": {"easy": "data/held-out.jsonl", "hard": "data/kept.jsonl"},
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
}


@pytest.fixture
def sources(workshop: Path) -> Path:
    """The files of a run, in a folder of their own and, as a card has them, beside its file."""
    (workshop / "data").mkdir()
    files = {"pairs": PAIRS, "kept": PAIRS[:3], "held-out": PAIRS[3:6]}
    for name, rows in files.items():
        for folder in (workshop, workshop / "data"):
            write_pairs(folder / f"{name}.jsonl", rows)
    return workshop


def printed(card: Path) -> dict[str, str]:
    """The blocks of a card's recipe, by their languages."""
    section = card.read_text().partition("## How to make it again")[2].partition("\n## ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))


def first_losses(folder: str) -> list[dict[str, float]]:
    """What a run's first step and evaluation were."""
    kept = ("loss", "nll_loss", "_loss", "grad_norm")
    return [
        {name: value for name, value in line.items() if name.endswith(kept)}
        for line in read_run(folder).metrics[:3]
    ]


@pytest.mark.parametrize("kind", RUNS)
def test_the_recipe_of_a_run_of_the_command_makes_the_same_run(
    sources: Path, command: Command, kind: str
) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump({**RUN, **RUNS[kind]}))
    assert command("train", "mine.yaml").code == 0
    blocks = printed(Path("first/README.md"))
    Path("run.yaml").write_text(blocks["yaml"])
    words = blocks["sh"].split()
    assert words[:1] == ["counterpoint"]
    said = command(*words[1:])
    assert said.code == 0, said.err
    assert first_losses("out") == first_losses("first")
    assert len(first_losses("out")[0]) >= 3


def test_the_recipe_of_a_run_made_in_python_makes_the_same_run(sources: Path) -> None:
    rows = load_dataset("json", data_files="pairs.jsonl", split="train")
    trainer = CPOTrainer(
        model="model",
        args=CPOConfig(
            output_dir="first", max_steps=1, logging_steps=1, use_cpu=True, eval_strategy="epoch"
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(3)),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"]),
    )
    trainer.train()
    trainer.save_model()
    script = printed(Path("first/README.md"))["python"]
    Path("PAIRS.jsonl").write_text(Path("pairs.jsonl").read_text())
    write_pairs(Path("EVAL.jsonl"), PAIRS[:3])
    exec(compile(script, "card", "exec"), {})  # as a reader would
    assert first_losses("out") == first_losses("first")
    assert read_run("out").facts["adapter"] == read_run("first").facts["adapter"]


def test_an_adapter_is_among_the_facts_and_the_differences(sources: Path, command: Command) -> None:
    from counterpoint.report.comparison import _options

    runs = []
    for folder, alpha in (("small", 2), ("large", 8)):
        options = {**RUN, "output_dir": folder, "lora_r": 2, "lora_alpha": alpha}
        Path("mine.yaml").write_text(yaml.safe_dump(options))
        assert command("train", "mine.yaml").code == 0
        runs.append(read_run(folder))
    told = adapter_options(runs[0].facts)
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 2, 2)
    assert "use_dora" not in told  # as by default
    assert differing([_options(run) for run in runs]) == {"adapter, lora_alpha": [2, 8]}
    assert json.loads(Path("small/run.json").read_text())["given"]["lora_alpha"] == 2
