"""``counterpoint merge``: one model of an adapter and its base, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import Command


@pytest.fixture
def adapter(workshop: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(workshop / "model")
    made = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    made.save_pretrained(workshop / "adapter")
    return workshop / "adapter"


def test_one_model_is_written_and_its_distance_told(command: Command, adapter: Path) -> None:
    said = command("merge", adapter, "--out", "whole")
    assert said.code == 0, said.err
    assert "as one model in float32" in said.out + said.err
    assert "nats a token" in said.out + said.err
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in Path("whole").iterdir()
    }
    again = command(
        "merge", adapter, "--out", "whole", "--overwrite", "--dtype", "bfloat16", "--json"
    )
    found = json.loads(again.out)
    assert found["dtype"] == "bfloat16"
    assert found["moved"] > 0
    assert found["bytes"] == sum((Path("whole") / name).stat().st_size for name in found["files"])
    assert AutoModelForCausalLM.from_pretrained("whole").dtype == torch.bfloat16


def test_a_run_that_trained_an_adapter_is_merged(command: Command, workshop: Path) -> None:
    words = ("--model", "model", "--dataset", "pairs.jsonl", "--lora_r", "2", "--max_steps", "1")
    assert command("train", *words, "--output_dir", "run", "--learning_rate", "1e-3").code == 0
    said = command("merge", "run", "--out", "whole", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["moved"] <= 1e-5
    assert AutoModelForCausalLM.from_pretrained("whole").num_parameters() > 0


RUN = ("--model", "model", "--dataset", "pairs.jsonl", "--max_steps", "1", "--output_dir", "run")


def test_a_run_merges_at_its_end_and_again_where_it_is_done_anew(
    command: Command, workshop: Path
) -> None:
    words = (*RUN, "--lora_r", "2", "--merge_at_end", "--learning_rate", "1e-3")
    said = command("train", *words)
    assert said.code == 0, said.err
    assert f"{Path('run', 'merged')}: run and its base model as one model in float32" in said.out
    assert not (Path("run") / "config.json").is_file()  # which would hide the adapter
    adapted = AutoModelForCausalLM.from_pretrained("run")
    merged = AutoModelForCausalLM.from_pretrained("run/merged")
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        gap = (adapted(ids).logits - merged(ids).logits).abs().max().item()
    assert gap <= 1e-4
    Path("run/merged/old.txt").write_text("of the run before")
    again = command("train", *words, "--overwrite_output_dir", "--seed", "7")
    assert again.code == 0, again.err
    assert not Path("run/merged/old.txt").exists()
    # what does not merge leaves no model of an earlier run beside its adapter
    assert command("train", *RUN, "--lora_r", "2", "--overwrite_output_dir").code == 0
    assert not Path("run/merged").exists()


@pytest.mark.parametrize("first", ["adapter", "whole"])
def test_a_run_in_the_place_of_one_of_the_other_kind_is_what_loaders_open(
    command: Command, workshop: Path, first: str
) -> None:
    """transformers puts an adapter on any model in its folder; the two are of different runs."""
    kinds = {"adapter": ("--lora_r", "2", "--learning_rate", "1e-2"), "whole": ()}
    second = "whole" if first == "adapter" else "adapter"
    assert command("train", *RUN, *kinds[first]).code == 0
    Path("run/notes.txt").write_text("mine")
    said = command("train", *RUN, *kinds[second], "--overwrite_output_dir")
    assert said.code == 0, said.err
    assert Path("run/notes.txt").exists()
    assert Path("run/config.json").exists() == Path("run/model.safetensors").exists()
    assert Path("run/adapter_config.json").exists() != Path("run/config.json").exists()
    assert command("train", *RUN, *kinds[second], "--output_dir", "alone").code == 0
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(n)(ids).logits for n in ("run", "alone"))
    assert torch.equal(one, other)


def test_a_run_over_the_folder_of_its_own_model_keeps_what_it_reads(
    command: Command, workshop: Path
) -> None:
    assert command("train", *RUN).code == 0
    words = ("--model", "run", "--dataset", "pairs.jsonl", "--output_dir", "run")
    more = ("--max_steps", "1", "--lora_r", "2", "--overwrite_output_dir")
    said = command("train", *words, *more)
    assert said.code == 0, said.err
    assert Path("run/model.safetensors").exists()  # on which the adapter lies


def test_a_base_of_pickles_is_merged_where_that_is_allowed(
    command: Command, workshop: Path
) -> None:
    torch.save(load_file("model/model.safetensors"), "model/pytorch_model.bin")
    Path("model/model.safetensors").unlink()
    said = command("train", *RUN, "--lora_r", "2", "--merge_at_end", "--allow_pickle")
    assert said.code == 0, said.err
    assert Path("run/merged/model.safetensors").is_file()
    judged = ("evaluate", "run", "--dataset", "pairs.jsonl", "--resamples", "9")
    for words in (("merge", "run", "--out", "whole"), judged):
        assert command(*words).err.rpartition("counterpoint: ")[2].startswith("CP310 ")
        said = command(*words, "--allow_pickle")
        assert said.code == 0, said.err


def test_nothing_to_merge_is_refused_before_the_run(command: Command, workshop: Path) -> None:
    said = command("train", *RUN, "--merge_at_end")
    assert said.code == 2
    assert "CP104 merge_at_end would do nothing: no adapter is trained" in said.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ([], "CP107 merge takes one adapter"),
        (["adapter"], "CP107 merge takes one adapter"),
        (["adapter", "other", "--out", "x"], "CP103 merge takes one adapter"),
        (["adapter", "--out", "adapter"], "CP104 adapter is the adapter's own folder"),
        (["adapter", "--out", "model"], "CP506 model holds something already"),
        (["adapter", "--out", "other", "--overwrite"], "CP506 other holds adapter_config.json"),
        (["adapter", "--out", "pairs.jsonl"], "CP501 pairs.jsonl cannot be written"),
        (["adapter", "--out", "x", "--dtype", "int3"], 'CP102 --dtype="int3" is not one of'),
        (["model", "--out", "x"], "CP301 model is no folder of an adapter"),
        (["nowhere", "--out", "x"], "CP301 nowhere is no folder of an adapter"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, adapter: Path, words: list[str], wrong: str
) -> None:
    Path("other").mkdir()
    Path("other/adapter_config.json").write_text("{}")
    said = command("merge", *words)
    assert said.code == 2
    assert said.err.startswith(f"counterpoint: {wrong}"), said.err
    assert not Path("x").exists()
