"""The guide does what it says: read from top to bottom it runs, in both languages alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.cli.completion import MODULES
from counterpoint.cli.main import main
from counterpoint.doctor.table import TABLE
from counterpoint.errors import CODES
from counterpoint.options.command import made
from counterpoint.options.evaluate_options import read_evaluation
from counterpoint.options.sample_options import OF_LOADING
from counterpoint.options.settings import read_request
from counterpoint.options.table import options
from counterpoint.quickstart.run import run
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import read_run
from tests.examples.pages import blocks, both, commands

ENGLISH, CHINESE = both("guide")
BOTH = pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["English", "Chinese"])
STEPS = 8
"""Optimizer steps that the guide's run takes here, on a quickstart as much shorter."""
LONGER = 32
"""Steps from which it can be seen what the NLL term does."""

# What runs


@dataclass(frozen=True)
class Read:
    """What is there when the guide has been read to its end."""

    folder: Path
    names: dict[str, Any]
    codes: list[tuple[str, int]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Read]:
    """The English page, done in its own order in an empty folder."""
    for package in ("peft", "bokeh", "sacrebleu"):
        pytest.importorskip(package, reason="a package that the guide uses is not installed")
    folder = tmp_path_factory.mktemp("guide")
    names: dict[str, Any] = {}
    codes: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COUNTERPOINT_CACHE", str(folder / "cache"))
        run("counterpoint-quickstart", steps=STEPS, held_out=8)
        for language, text in blocks(ENGLISH):
            if language == "python":
                exec(compile(text, "docs/guide.md", "exec"), names)
            elif language == "yaml":
                Path(text.split()[1]).write_text(text, encoding="utf-8")
            elif language == "sh":
                codes += [
                    (shlex.join(words), main(words[1:]))
                    for words in commands(text)
                    if words[0] == "counterpoint" and words[1] != "quickstart"
                ]
        yield Read(folder, names, codes)


def test_every_command_does_what_it_is_for(read: Read) -> None:
    assert len(read.codes) > 10
    # the doctor has warnings
    assert [pair for pair in read.codes if pair[1] != ("doctor run" in pair[0])] == []


def test_the_doctor_warns_of_what_the_guide_says(read: Read) -> None:
    said = re.search(r"Here it warns of two values.*?(?= An error)", ENGLISH)[0]
    found = {finding.code for finding in read.names["report"].of_severity("error", "warning")}
    # how often a row repeats depends on how many there are
    assert {"CW103", "CW105"} <= found <= set(re.findall(r"CW\d+", said))


def test_the_formula_shown_is_the_one_that_is_printed(read: Read) -> None:
    assert ("text", read.names["trainer"].objective.formula() + "\n") in blocks(ENGLISH)


def test_the_file_asks_for_what_the_script_does(read: Read) -> None:
    in_file = yaml.safe_load((read.folder / "run.yaml").read_text(encoding="utf-8"))
    others = ("model", "dataset", "eval_dataset", "output_dir")
    assert {k: v for k, v in in_file.items() if k not in others} == read.names["options"]


def test_the_metrics_explained_are_those_that_are_logged(read: Read) -> None:
    table = re.search(r"\| Metric \|.*?\n\n", ENGLISH, re.DOTALL)[0]
    explained = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([\w/.]+)`", row.split(" | ")[0])
    }
    logged = {name for line in read_run(read.folder / "runs" / "guide").metrics for name in line}
    assert explained - {"eval_...", "skipped_steps"} <= logged
    # what is left unexplained says itself, or counts for experts of the matter
    assert {n for n in logged if not n.startswith(("eval_", "train_"))} - explained <= {
        "epoch",
        "step",
        "time",
        "logits/chosen",
        "logits/rejected",
        "total_flos",
    }


def test_the_nll_term_holds_the_chosen_up_as_the_guide_shows(read: Read, tmp_path: Path) -> None:
    pairs = [pair.row for pair in preference_pairs(LONGER * 32, seed=0)]
    last = {}
    for alpha in (0.03, 0.0):
        model, tokenizer = load_base()
        changed = {"cpo_alpha": alpha, "eval_strategy": "no", "save_strategy": "no"}
        one = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}  # faster so
        args = CPOConfig(output_dir=str(tmp_path), **read.names["options"] | changed | one)
        trainer = CPOTrainer(model, args, train_dataset=pairs, processing_class=tokenizer)
        trainer.train()
        first, *_, last[alpha] = [line for line in trainer.state.log_history if "loss" in line]
    held, fallen = last[0.03], last[0.0]
    assert fallen["logps/chosen"] < held["logps/chosen"] < first["logps/chosen"]
    assert fallen["rewards/margins"] > held["rewards/margins"] > first["rewards/margins"]
    assert fallen["loss"] < held["loss"]


# What is only named


def parse(words: list[str]) -> None:
    """Let the command's own parser read a command line; it raises where it cannot."""
    command, *rest = words
    own = import_module(f"counterpoint.cli.{command}").COMMAND if command in MODULES else None
    values: dict[str, Any] = {}
    if own is not None:
        values, rest = own.take(rest)
        for kind in filter(None, (own.own, own.beside)):
            made(kind, values)
    if "explain" in values:
        assert values["explain"] in TABLE
    elif command == "evaluate":
        assert read_evaluation(rest[0], rest[1:], "nowhere").run.eval_dataset
    elif command in ("sample", "chat"):
        assert read_evaluation(
            rest[0], rest[1:], "nowhere", command=command, takes=OF_LOADING
        ).run.model
    elif own is None or own.of_train:
        assert command in ("train", *MODULES)
        read_request(rest)


def test_several_processes_are_asked_for_in_words_that_the_command_takes(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(read.folder)
    every = [words for kind, text in blocks(ENGLISH) if kind == "sh" for words in commands(text)]
    launched = [words[words.index("-m") + 1 :] for words in every if words[0] == "torchrun"]
    assert len(launched) == 1
    for words in launched:
        assert words[0] == "counterpoint"
        parse(words[1:])


@BOTH
def test_every_command_within_a_line_is_one_that_its_parser_takes(
    page: str, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(read.folder)
    named = re.findall(r"`(?:\w+=\w+ )*counterpoint (\w+ [^`]+)`", page)
    assert len(named) > 15
    for line in named:
        parse(shlex.split(line))


@BOTH
def test_every_code_is_one_that_the_tables_have(page: str) -> None:
    named = set(re.findall(r"\bC[PWN]\d{3}\b", page))
    assert len(named) > 50
    assert named <= set(TABLE) | set(CODES)


@BOTH
def test_every_option_named_with_a_value_takes_it(page: str) -> None:
    given = {
        (name, value)
        for code in re.findall(r"`([^`\n]+)`", page)
        for name, value in re.findall(r"^(\w+): (\S+)$", code)
    }
    assert len(given) > 12
    for name, value in given:
        choices = options()[name].choices  # KeyError: no such option
        assert not choices or value in choices or "report" in name, (name, value)
