"""The page of translation does what it says, on small models in the place of those it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from counterpoint.cli.main import main
from counterpoint.models.family import STARTS
from counterpoint.quickstart.task import english, german
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import Run, read_run
from tests.examples.pages import DOCS, blocks, commands
from tests.translators_on_the_spot import ROWS, translator

PAGE = (DOCS / "translation.md").read_text(encoding="utf-8")
STAND_INS = {"facebook/nllb-200-distilled-600M": "nllb", "Qwen/Qwen2.5-0.5B": "decoder"}
SHORTER = {"--max_steps": "4", "--eval_steps": "2"}


def shortened(words: list[str]) -> list[str]:
    """A command of the page with small models and few steps."""
    found = [STAND_INS.get(word, word) for word in words]
    for name, value in SHORTER.items():
        if name in found:
            found[found.index(name) + 1] = value
    if words[1] in ("train", "evaluate", "doctor"):
        found += ["--use_cpu=true"]
    if words[1] == "train":
        found += ["--per_device_train_batch_size=4"]
    if "--generate_during_eval" in words:
        found += ["--eval_sample_tokens=4"]
    if words[1] == "evaluate":
        found += ["--max_new_tokens=4"]
    return found[1:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The page, done from top to bottom in an empty folder: its runs, by their folders."""
    folder = tmp_path_factory.mktemp("translation")
    for part in translator("nllb"):
        part.save_pretrained(folder / "nllb")
    for part in load_base():
        part.save_pretrained(folder / "decoder")
    scored = [
        {
            "source": english(n),
            "candidates": [{"text": german(n), "mqm": 0.5}, {"text": german(n + 9), "mqm": 5.0}],
            "reference": german(n),
        }
        for n in range(100, 130)
    ]
    for name, rows in (("scored", scored[:24]), ("held-scored", scored[24:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COUNTERPOINT_CACHE", str(folder / "cache"))
        for language, block in blocks(PAGE):
            if language == "python":
                code = block.replace("max_steps=200", "max_steps=2, use_cpu=True")
                for name, own in STAND_INS.items():
                    code = code.replace(name, own)
                exec(compile(code, "docs/translation.md", "exec"), {})
            elif language == "sh":
                for words in commands(block):
                    # 1: the doctor has something to say
                    fine = (0, 1) if words[1] == "doctor" else (0,)
                    assert main(shortened(words)) in fine, words
        yield {path.name: read_run(path) for path in (folder / "runs").iterdir()}


def test_every_command_of_the_page_runs(runs: dict[str, Run]) -> None:
    assert set(runs) == {"nllb", "nllb-in-python", "qwen"}
    for run in runs.values():
        assert run.facts["ended"] is not None
    assert [line["set"] for line in runs["nllb"].samples][:1] == ["eval"]


def test_nothing_that_is_trained_on_is_evaluated_and_references_come_along() -> None:
    words = [
        command
        for language, block in blocks(PAGE)
        if language == "sh"
        for command in commands(block)
    ]
    made = {
        command[command.index("--out") + 1]: command for command in words if command[1] == "pairs"
    }
    trained = {
        command[command.index("--dataset") + 1] for command in words if command[1] == "train"
    }
    judged = {
        command[command.index("--eval_dataset") + 1]
        for command in words
        if "--eval_dataset" in command
    }
    sources = {name: command[2] for name, command in made.items()}
    assert not {sources[name] for name in trained} & {sources[name] for name in judged}
    assert all("reference" in made[name] for name in judged)


def test_languages_and_layout_are_in_the_run(runs: dict[str, Run]) -> None:
    for name in ("nllb", "nllb-in-python"):
        options: dict[str, Any] = runs[name].facts["options"]
        assert (options["source_lang"], options["target_lang"]) == ("zho_Hans", "eng_Latn")


def test_the_table_has_every_kind_that_is_trained() -> None:
    table = PAGE.split("## The models")[1].split("## ")[0]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert named == set(STARTS)


def test_the_example_adapts_a_translator(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    for part in translator("nllb"):
        part.save_pretrained(tmp_path / "nllb")
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"source": row["prompt"], **row} for row in ROWS * 4]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    example = run_path(str(DOCS.parent / "examples" / "translation_nllb.py"))
    trainer = example["main"](
        str(pairs),
        str(tmp_path / "nllb"),
        "eng_Latn",
        "deu_Latn",
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        use_cpu=True,
        eval_sample_tokens=3,
    )
    assert trainer.model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    front = yaml.safe_load((tmp_path / "run" / "README.md").read_text().split("---")[1])
    assert front["pipeline_tag"] == "text2text-generation"
    # what a recipe makes the adapter of
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["adapter"]["default"]
    assert settings["task_type"] == "SEQ_2_SEQ_LM"
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "nllb")
    alone = PeftModel.from_pretrained(base, tmp_path / "run")
    trained = dict(trainer.model.named_parameters())
    for name, weight in alone.named_parameters():
        assert weight.equal(trained[name].detach()), name
