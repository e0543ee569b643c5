"""``lora_target_parameters``: an adapter of experts, whose weights are one tensor a layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.cli.conftest import PAIRS as ROWS
from tests.cli.conftest import Command, write_pairs
from tests.cli.test_continued import same
from tests.cli.test_new_adapter import opened, says
from tests.models_on_the_spot import make_model
from tests.steps import distance, random_pairs, train_watched

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RUN = (
    *("--model", "model", "--dataset", "pairs.jsonl", "--lora_r", "2"),
    *("--lora_target_modules", "q_proj", "--lora_target_parameters", *EXPERTS),
    *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--max_steps", "4"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model with experts, pairs, and a run that trained an adapter of both."""
    from counterpoint.cli.main import main

    folder = tmp_path_factory.mktemp("experts") / "shop"
    make_model("qwen3_moe", vocab_size=len(gpt2_tokenizer)).save_pretrained(folder / "model")
    gpt2_tokenizer.save_pretrained(folder / "model")
    write_pairs(folder / "pairs.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *RUN, "--save_steps", "2", "--output_dir", "run"]) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def test_experts_are_trained_opened_by_peft_and_merged(command: Command, place: Path) -> None:
    held = load_file("run/adapter_model.safetensors")
    of_experts = [name for name in held if ".experts." in name and "lora_B" in name]
    assert len(of_experts) == 4  # two weights of two layers
    assert all(held[name].abs().max() > 0 for name in of_experts)
    adapted = opened("run")
    base = AutoModelForCausalLM.from_pretrained("model")
    assert (says(adapted) - says(base)).abs().max() > 1e-3
    said = command("merge", "run", "--out", "whole", "--json")
    assert json.loads(said.out)["moved"] <= 1e-5, said.err
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert (says(whole) - says(adapted)).abs().max() <= 1e-5


def test_they_are_resumed_bit_for_bit(command: Command, place: Path) -> None:
    shutil.copytree("run", "again")
    shutil.rmtree("again/checkpoint-4")
    words = ("--save_steps", "2", "--output_dir", "again", "--resume", "auto")
    said = command("train", *RUN, *words)
    assert said.code == 0, said.err
    assert same("run", "again")


def test_they_are_trained_on_and_planned_for(command: Command, place: Path) -> None:
    on = ("train", "--model", "run", "--dataset", "pairs.jsonl", "--max_steps", "1")
    said = command(*on, "--learning_rate", "0", "--save_strategy", "no", "--output_dir", "still")
    assert said.code == 0, said.err
    assert same("run", "still")
    without = [word for word in RUN if word not in ("--lora_target_parameters", *EXPERTS)]
    room = ("--memory", "4GiB", "--json")
    plans = [json.loads(command("plan", *words, *room).out) for words in (RUN, without)]
    trained = sum(
        weight.numel()
        for name, weight in load_file("run/adapter_model.safetensors").items()
        if ".experts." in name
    )
    assert plans[0]["trained"] - plans[1]["trained"] == trained


def test_the_gradient_is_that_of_the_pairs_however_they_are_cut(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """In float32: experts compute in it, whatever the weights are."""

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERTS)
        adapted = get_peft_model(make_model("qwen3_moe", router_aux_loss_coef=0.0), config)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:  # else nothing reaches lora_A
                    weight.normal_(std=0.1)
        return adapted

    pictures = []
    for number, (batch, several, layout) in enumerate(
        [(8, 1, "shared"), (2, 4, "shared"), (1, 8, "padded")]
    ):
        steps, _ = train_watched(
            model(),
            chatml_tokenizer,
            random_pairs(8),
            tmp_path / str(number),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=several,
            layout=layout,
        )
        pictures += steps
    assert any("experts" in name for name in pictures[0])
    assert max(distance(pictures[0], other) for other in pictures[1:]) <= 2e-6


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (
            ["--lora_target_parameters", "mlp.experts.w1"],
            "Its experts have mlp.experts.gate_up_proj",
        ),
        (["--lora_dropout", "0.1"], "CP104 lora_target_parameters with lora_dropout"),
        (["--use_dora"], "CP104 lora_target_parameters with use_dora"),
    ],
)
def test_what_cannot_be_is_refused(
    command: Command, place: Path, words: list[str], wrong: str
) -> None:
    said = command("train", *RUN, "--output_dir", "x", *words)
    assert said.code == 2
    assert wrong in " ".join(said.err.split()), said.err


def test_experts_in_shards_are_refused(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers says to accelerate through the environment that there are shards
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    said = command("plan", *RUN, "--fsdp", "2", "--ranks", "2")
    assert said.code == 2
    assert "CP105 lora_target_parameters with fsdp" in " ".join(said.err.split())
