"""``--create_new_adapter``: the old adapter is merged into its base, and a new one lies on both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import Command
from tests.cli.test_continued import digest, same, shop, trained

__all__ = ["shop", "trained"]

RUN = (
    *("train", "--model", "first", "--dataset", "pairs.jsonl", "--lora_r", "4"),
    *("--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--max_steps", "4"),
    *("--save_steps", "2"),
)
NEW = (*RUN, "--create_new_adapter")


def says(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        return model.eval()(ids).logits.log_softmax(-1)


def opened(adapter: str, base: str | None = None) -> torch.nn.Module:
    """An adapter as PEFT opens it: on the base that it names."""
    named = json.loads(Path(adapter, "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base or named)
    return PeftModel.from_pretrained(model, adapter)


@pytest.fixture(scope="module")
def ran(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``trained``, and in it a run that put a new adapter on its adapter."""
    from counterpoint.cli.main import main

    folder = tmp_path_factory.mktemp("ran") / "shop"
    shutil.copytree(trained, folder)
    before = digest(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*NEW, "--output_dir", "second"]) == 0
    after = digest(str(folder))
    assert {name: after[name] for name in before} == before
    return folder


@pytest.fixture
def place(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shop"
    shutil.copytree(ran, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_what_is_saved_is_opened_by_peft_and_merged(command: Command, place: Path) -> None:
    # what is frozen beneath says what the old adapter said on its base
    beneath = AutoModelForCausalLM.from_pretrained("second/base")
    assert (says(beneath) - says(opened("first"))).abs().max() <= 1e-5
    new = opened("second")
    assert new.peft_config["default"].r == 4
    assert (says(new) - says(beneath)).abs().max() > 1e-4
    # a run's folder may be moved, and what its adapter lies on with it
    shutil.move("second", "moved")
    merged = command("merge", "moved", "--out", "whole", "--json")
    assert json.loads(merged.out)["moved"] <= 1e-5
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert (says(whole) - says(new)).abs().max() <= 1e-5


def test_it_is_resumed_bit_for_bit_without_the_old_adapter(command: Command, place: Path) -> None:
    shutil.copytree("second", "again")
    shutil.rmtree("again/checkpoint-4")
    words = (*NEW, "--output_dir", "again", "--resume", "auto")
    shutil.move("first", "elsewhere")
    said = command(*words)
    assert said.code == 0, said.err
    assert same("second", "again")
    # without the base either, there is nothing to make it of
    shutil.rmtree("again/base")
    assert "CP104 create_new_adapter" in command(*words).err


def test_a_base_that_was_lost_is_made_again(command: Command, place: Path) -> None:
    before = load_file("second/base/model.safetensors")
    shutil.copytree("second", "again")
    shutil.rmtree("again/checkpoint-4")
    shutil.rmtree("again/base")
    said = command(*NEW, "--output_dir", "again", "--resume", "auto")
    assert said.code == 0, said.err
    assert same("second", "again")
    after = load_file("again/base/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_old_adapter_that_changed_is_refused_when_resumed(command: Command, place: Path) -> None:
    file = Path("first/adapter_config.json")
    file.write_text(file.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    said = command(*NEW, "--output_dir", "second", "--resume", "auto")
    assert said.code == 2
    assert "CP340 first has changed since it was merged into second/base" in said.err


def test_a_run_that_is_refused_leaves_the_base_of_another(command: Command, place: Path) -> None:
    before = digest("second")
    words = ("--output_dir", "second", "--overwrite_output_dir")
    said = command(*NEW, *words, "--lora_target_modules", "nothing")
    assert said.code == 2
    assert "CP307" in said.err
    assert digest("second") == before
    words = (*words, "--lora_r", "2", "--max_steps", "1", "--save_strategy", "no")
    assert command(*NEW, *words).code == 0
    assert opened("second").peft_config["default"].r == 2


def test_the_run_its_card_and_its_report_say_both(command: Command, place: Path) -> None:
    """A third adapter on top of the second; with a rate of zero it says what the second says."""
    third = [word if word != "first" else "second" for word in NEW]
    words = ("--save_strategy", "no", "--learning_rate", "0", "--max_steps", "1")
    said = command(*third, "--output_dir", "third", *words)
    assert said.code == 0, said.err
    assert (says(opened("third")) - says(opened("second"))).abs().max() <= 1e-5
    merged = json.loads(Path("third/run.json").read_text())["merged"]
    assert (merged["base"], merged["adapters"]) == ("model", ["first", "second"])
    card = Path("third/README.md").read_text()
    assert "An adapter for `model` with the adapters `first` and `second` merged into it" in card
    assert "base_model" not in card  # on which it would say something else
    assert command("report", "third").code == 0
    assert "model + first + second" in Path("third/report.html").read_text()


def test_other_commands_know_that_a_new_one_trains(command: Command, shop: Path) -> None:
    run, limit = NEW[1:], ("--memory", "4GiB", "--json")
    plan = command("plan", *run, *limit)
    assert plan.code == 0, plan.err
    plain = ["model" if word == "first" else word for word in RUN[1:]]
    assert json.loads(plan.out) == json.loads(command("plan", *plain, *limit).out)
    assert "CP" not in command("doctor", *run).out
    assert command("tokens", *run, "--row", "1").code == 0
    names = ["bare", "first", "model", "pairs.jsonl"]
    assert sorted(path.name for path in shop.iterdir()) == names  # nothing is kept of it


def test_a_run_with_a_reference_is_evaluated_against_what_it_keeps_beneath(
    command: Command, shop: Path
) -> None:
    """Not against the old adapter, which the run needs no more and which 16 bits have rounded."""
    words = ("--loss_type", "dpo", "--dtype", "bfloat16", "--max_steps", "1", "--output_dir", "new")
    said = command(*NEW, *words, "--eval_dataset", "pairs.jsonl", "--save_strategy", "no")
    assert said.code == 0, said.err
    lines = [json.loads(line) for line in Path("new/metrics.jsonl").read_text().splitlines()]
    then = next(one["eval_rewards/margins"] for one in lines if "eval_rewards/margins" in one)
    shutil.move("first", "elsewhere")
    shutil.move("new", "moved")
    said = command("evaluate", "moved", "--dataset", "pairs.jsonl", "--json", "--resamples", "9")
    assert said.code == 0, said.err
    now = json.loads(said.out)["after"]["sets"]["pairs.jsonl"]["measures"]["margin"]["value"]
    assert now == pytest.approx(then, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--model", "model"], "CP104 create_new_adapter merges the adapter that model names"),
        (["--revision", "main"], "CP104 revision=main would do nothing"),
        (["--lora_r", "null"], "CP104 create_new_adapter would do nothing without an adapter"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, shop: Path, words: list[str], wrong: str
) -> None:
    said = command(*NEW, "--output_dir", "x", *words)
    assert said.code == 2
    assert wrong in said.err, said.err
    assert not Path("x").exists()
