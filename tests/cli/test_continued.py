"""``--model ADAPTER``: the adapter is trained on, over the base that it names."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import Command

ON = ("--dataset", "pairs.jsonl", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3")


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def same(one: str | Path, other: str | Path) -> bool:
    before, after = weights(one), weights(other)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def digest(folder: str) -> dict[str, str]:
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, pattern: Path, request: pytest.FixtureRequest
) -> Path:
    """The folder of a run that has trained an adapter, with what it was made of beside it."""
    from counterpoint.cli.main import main

    folder = tmp_path_factory.mktemp("trained") / "shop"
    shutil.copytree(pattern, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["train", "--model", "model", *ON, "--max_steps", "2", "--output_dir", "first"]
        assert main([*words, "--lora_r", "2", "--save_strategy", "no"]) == 0
    return folder


@pytest.fixture
def shop(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shop"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_an_adapter_is_trained_on_from_where_it_is(
    command: Command, shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = digest("first")
    still = ("--learning_rate", "0", "--max_steps", "1", "--output_dir", "still")
    assert command("train", "--model", "first", *ON, *still).code == 0
    assert same("first", "still")
    said = command("train", "--model", "first", *ON, "--max_steps", "2", "--output_dir", "second")
    assert said.code == 0
    assert "training on the adapter of first, on its base model" in caplog.text
    assert not same("first", "second")
    assert digest("first") == before
    base = AutoModelForCausalLM.from_pretrained("model")
    assert PeftModel.from_pretrained(base, "second").peft_config["default"].r == 2
    assert json.loads(Path("second/adapter_config.json").read_text())["lora_alpha"] == 4


def test_it_is_resumed_bit_for_bit(command: Command, shop: Path) -> None:
    words = ("train", "--model", "first", *ON, "--max_steps", "4", "--save_steps", "2")
    assert command(*words, "--output_dir", "whole").code == 0
    shutil.copytree("whole", "again")
    shutil.rmtree("again/checkpoint-4")
    said = command(*words, "--output_dir", "again", "--resume", "auto")
    assert said.code == 0, said.err
    assert same("whole", "again")


def test_then_it_is_merged(command: Command, shop: Path) -> None:
    words = ("train", "--model", "first", *ON, "--max_steps", "2", "--output_dir", "second")
    assert command(*words).code == 0
    said = command("merge", "second", "--out", "whole", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["moved"] <= 1e-5
    whole = AutoModelForCausalLM.from_pretrained("whole").eval()
    base = AutoModelForCausalLM.from_pretrained("model")
    there = PeftModel.from_pretrained(base, "second").eval()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        said_by = [model(ids).logits.log_softmax(-1) for model in (whole, there)]
    assert (said_by[0] - said_by[1]).abs().max() <= 1e-5


def test_an_adapter_beside_its_bases_configuration_is_an_adapter(
    command: Command, shop: Path
) -> None:
    """As Axolotl writes them. With a model's weights beside it, nobody knows which is meant."""
    shutil.copy("model/config.json", "first/config.json")
    said = command("train", "--model", "first", *ON, "--max_steps", "1", "--output_dir", "second")
    assert said.code == 0, said.err
    assert not same("first", "second")
    said = command("merge", "first", "--out", "whole")
    assert said.code == 0, said.err
    shutil.copy("model/model.safetensors", "first/model.safetensors")
    said = command("train", "--model", "first", *ON, "--max_steps", "1", "--output_dir", "third")
    assert "CP301 first holds an adapter" in said.err


def test_other_commands_know_that_an_adapter_trains(command: Command, shop: Path) -> None:
    run = ("--model", "first", *ON, "--max_steps", "2")
    run_at = ("--memory", "4GiB", "--json")
    plan = command("plan", *run, *run_at)
    assert plan.code == 0, plan.err
    of_base = ("--model", "model", *ON, "--max_steps", "2", "--lora_r", "2")
    new = command("plan", *of_base, *run_at)
    # of the same layers, so that what trains takes as much
    assert json.loads(plan.out) == json.loads(new.out)
    assert "CW105" not in command("doctor", *run).out
    assert command("smoke", *run, "--real", "1").code == 0
    assert command("tokens", *run, "--row", "1").code == 0


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--lora_r", "2"], "CP104 first is an adapter, and lora_r describes another one"),
        (["--fsdp", "2"], "CP105 "),
        (["--revision", "main"], "CP104 revision=main would do nothing"),
        (["--from_scratch"], "CP301 first holds an adapter"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, shop: Path, words: list[str], wrong: str
) -> None:
    said = command("train", "--model", "first", *ON, "--output_dir", "x", *words)
    assert said.code == 2
    assert wrong in said.err, said.err


def test_a_base_that_is_not_there_is_named(command: Command, shop: Path) -> None:
    shutil.move("model", "elsewhere")
    said = command("train", "--model", "first", *ON, "--output_dir", "x")
    assert said.code == 2
    assert "CP301" in said.err
    assert "model" in said.err
