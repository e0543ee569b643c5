"""Beside the weights lies a card of what made them, unless the user wrote one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import yaml
from datasets import Dataset

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.report.about import base_name, hub_datasets
from counterpoint.runlog import Alarm

ROWS = [
    {"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}.", "rejected": f" Maybe {i}?"}
    for i in range(4)
]


@pytest.fixture
def build(models: Any, chatml_tokenizer: Any, tmp_path: Path) -> Any:
    def make(**arguments: Any) -> CPOTrainer:
        args = CPOConfig(
            output_dir=str(tmp_path / "run"),
            beta=0.5,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        return CPOTrainer(
            models("qwen2"),
            args,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=chatml_tokenizer,
            **arguments,
        )

    return make


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_of_the_run_that_made_the_weights(build: Any, tmp_path: Path) -> None:
    trainer = build()
    trainer.train()
    trainer.raise_alarm(Alarm("CW101", step=2, since=1, seen="something"))
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert trainer.objective.formula() in card
    assert "training at step 2" in card
    assert "    beta=0.5,\n" in card
    assert "`CW101`" in card
    assert str(tmp_path) not in card


def test_an_adapters_card_is_ours_and_not_pefts(build: Any, tmp_path: Path) -> None:
    trainer = build(peft_config=peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer.train()
    for _ in range(2):  # PEFT writes into a card that it finds
        trainer.save_model(str(tmp_path / "out"))
        card = (tmp_path / "out" / "README.md").read_text()
        assert front_matter(card)["library_name"] == "peft"
        assert "## What was minimised" in card
        assert "Model Card for Model ID" not in card


def test_a_card_of_the_users_own_stays(build: Any, tmp_path: Path) -> None:
    trainer = build()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("mine")
    trainer.save_model()
    trainer.create_model_card(tags="more")
    assert (tmp_path / "run" / "README.md").read_text() == "mine"


def test_a_push_adds_its_tags_and_language(build: Any, tmp_path: Path) -> None:
    trainer = build()
    trainer.save_model()
    trainer.create_model_card(tags="more", language="de", license="mit", model_name="x")
    found = front_matter((tmp_path / "run" / "README.md").read_text())
    assert "more" in found["tags"]
    assert (found["language"], found["license"]) == ("de", "mit")


def test_options_that_were_given_are_known_from_defaults() -> None:
    changed = CPOConfig(output_dir="x", beta=0.5, bf16=False, loss_type="sigmoid").changed
    assert changed == ("output_dir", "bf16", "beta")
    assert CPOConfig(output_dir="x", loss_type="alphapo").changed == ("output_dir", "loss_type")


def test_data_from_the_hub_are_known_by_their_files() -> None:
    files = {
        "hf://datasets/example/pairs@0123/data/train.parquet": {},
        "hf://datasets/example/pairs@0123/data/test.parquet": {},
        "https://elsewhere.org/x/y@z": {},
    }
    dataset = SimpleNamespace(info=SimpleNamespace(download_checksums=files))
    assert hub_datasets(dataset) == ("example/pairs",)
    assert hub_datasets({"a": dataset, "b": Dataset.from_list(ROWS)}) == ("example/pairs",)
    assert hub_datasets(None) == ()


@pytest.mark.parametrize(
    ("name", "base"), [("example/model", "example/model"), ("", ""), ("/data/me/model", "model")]
)
def test_a_base_model_is_an_id_or_a_bare_name(name: str, base: str) -> None:
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=name))
    assert base_name(model) == base


def test_a_folder_that_looks_like_an_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path="runs/first"))
    assert base_name(model) == "first"
