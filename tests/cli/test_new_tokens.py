"""``--resize_vocab``: rows for tokens that the model does not have, trained and kept."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.errors import ModelError
from counterpoint.models.vocabulary import grow_embeddings, new_ids
from tests.cli.conftest import Command, write_pairs
from tests.cli.test_continued import digest, same
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs, train_watched

ADDED = ["<think>", "</think>"]
ROWS = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f" <think>{n}+{n}</think> It is {2 * n}.",
        "rejected": f" {n}, I am.",
    }
    for n in range(1, 9)
]
RUN = (
    *("--dataset", "pairs.jsonl", "--resize_vocab", "--tokenizer", "more"),
    *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--max_steps", "4"),
)
LORA = (*RUN, "--lora_r", "2", "--lora_target_modules", "q_proj")


@pytest.fixture(scope="module", params=["qwen2", "qwen2_tied"])
def made(
    tmp_path_factory: pytest.TempPathFactory,
    gpt2_tokenizer: PreTrainedTokenizerFast,
    request: pytest.FixtureRequest,
) -> Path:
    """A model, its tokenizer with two tokens more, and a run that trained them in an adapter."""
    from counterpoint.cli.main import main

    folder = tmp_path_factory.mktemp("tokens") / "shop"
    make_model(request.param, vocab_size=len(gpt2_tokenizer)).save_pretrained(folder / "model")
    gpt2_tokenizer.save_pretrained(folder / "model")
    more = AutoTokenizer.from_pretrained(folder / "model")
    more.add_tokens(ADDED)
    more.save_pretrained(folder / "more")
    write_pairs(folder / "pairs.jsonl", ROWS)
    before = digest(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--model", "model", "--save_steps", "2", "--output_dir", "run"]
        assert main(["train", *LORA, *words]) == 0
    after = digest(str(folder))
    assert {name: after[name] for name in before} == before
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def says(model: Any, rows: int) -> torch.Tensor:
    """Of a text with both new tokens, which are also predicted."""
    ids = torch.tensor([[7, rows - 2, 9, rows - 1, 30, rows - 2]])
    with torch.no_grad():
        return model.eval()(ids).logits.log_softmax(-1)


def opened(adapter: str, rows: int) -> Any:
    """An adapter as the manual of PEFT opens it, whatever transformers puts into new rows."""
    model = AutoModelForCausalLM.from_pretrained("model")
    torch.manual_seed(5)
    model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, adapter)


def test_new_tokens_are_trained_opened_by_peft_and_merged(
    command: Command, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained("run")
    rows = len(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(ADDED)
    named = json.loads(Path("run/adapter_config.json").read_text())["trainable_token_indices"]
    assert all(ids == own for own in named.values())
    held = load_file("run/adapter_model.safetensors")
    moved = [w for name, w in held.items() if "trainable_tokens_delta" in name]
    assert all(len(w) < rows for w in held.values())  # no embedding is saved whole
    assert all(len(w) == 2 for w in moved)
    adapted = opened("run", rows)
    # each of the rows went its own way, so they have been trained
    assert all((w[0] - w[1]).abs().max() > 1e-3 for w in moved)
    said = command("merge", "run", "--out", "whole", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["moved"] <= 1e-5
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert whole.config.vocab_size == rows
    assert (says(whole, rows) - says(adapted, rows)).abs().max() <= 1e-5
    # the base grows as it did in the run, and so is known again
    said = command("evaluate", "run", "--dataset", "pairs.jsonl")
    assert said.code == 0, said.err
    assert "CW507" not in caplog.text


def test_they_are_resumed_bit_for_bit(command: Command, place: Path) -> None:
    shutil.copytree("run", "again")
    shutil.rmtree("again/checkpoint-4")
    words = ("--model", "model", "--save_steps", "2", "--output_dir", "again", "--resume", "auto")
    said = command("train", *LORA, *words)
    assert said.code == 0, said.err
    assert same("run", "again")


UNTIED = pytest.mark.parametrize("made", ["qwen2"], indirect=True)


@UNTIED
def test_they_are_trained_on_and_planned_for(command: Command, place: Path) -> None:
    on = ("--model", "run", "--dataset", "pairs.jsonl", "--max_steps", "1")
    room = ("--memory", "4GiB", "--json")
    words = ("--learning_rate", "0", "--save_strategy", "no", "--output_dir", "still")
    said = command("train", *on, *words)
    assert said.code == 0, said.err
    assert same("run", "still")
    trained = sum(
        weight.numel()
        for name, weight in load_file("run/adapter_model.safetensors").items()
        if "lora_" in name or "trainable_tokens_delta" in name
    )
    for run in (on, (*LORA, "--model", "model")):
        plan = command("plan", *run, *room)
        assert plan.code == 0, plan.err
        assert json.loads(plan.out)["trained"] == trained
    new = (*on, "--create_new_adapter", "--lora_r", "2", "--save_strategy", "no")
    said = command("train", *new, "--output_dir", "new")
    assert said.code == 0, said.err
    rows = len(AutoTokenizer.from_pretrained("run"))
    beneath = AutoModelForCausalLM.from_pretrained("new/base")
    assert (says(beneath, rows) - says(opened("run", rows), rows)).abs().max() <= 1e-5


@UNTIED
def test_all_weights_train_with_them_too(command: Command, place: Path) -> None:
    words = ("--model", "model", "--max_steps", "1", "--save_strategy", "no")
    said = command("train", *RUN, *words, "--output_dir", "full")
    assert said.code == 0, said.err
    rows = len(AutoTokenizer.from_pretrained("full"))
    model = AutoModelForCausalLM.from_pretrained("full")
    assert model.get_input_embeddings().weight.shape[0] == rows


def test_what_is_new_is_what_the_model_was_not_trained_on(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Padding may have given a new token a row, which nobody has trained."""
    more = copy.deepcopy(gpt2_tokenizer)
    more.add_tokens(ADDED)
    ids, rows = more.convert_tokens_to_ids(ADDED), len(gpt2_tokenizer)
    assert new_ids(more, None, rows, named="more") == ids
    assert new_ids(more, gpt2_tokenizer.get_vocab(), rows + 64, named="more") == ids
    assert new_ids(gpt2_tokenizer, None, rows, named="own") == []


def test_where_no_row_can_be_added_it_is_said(models: Callable[..., Any]) -> None:
    model = models("qwen2")
    model.config.share_encoder_decoder_embeddings = False  # as in some Marians
    with pytest.raises(ModelError, match=r"^CP341 .* reads one vocabulary and writes another"):
        grow_embeddings(model, 10_000)
    model = models("qwen2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), False)
    with pytest.raises(ModelError, match=r"^CP341 .* quantised"):
        grow_embeddings(model, 10_000)


def test_a_new_row_is_the_mean_of_the_others(models: Callable[..., Any]) -> None:
    for kind in ("qwen2", "qwen2_tied"):
        model = models(kind)
        before = model.get_input_embeddings().weight.detach().clone()
        assert grow_embeddings(model, len(before) + 3) == 3
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert module.weight.shape[0] == len(before) + 3
        after = model.get_input_embeddings().weight
        assert torch.equal(after[: len(before)], before)
        torch.testing.assert_close(after[-1], before.double().mean(0).float())
        assert grow_embeddings(model, len(before)) == 0


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_tied"])
def test_the_gradient_of_a_row_is_that_of_the_whole_embedding(
    kind: str, chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The slow truth: all of embedding and head train, and the rows are looked at alone."""
    from peft import LoraConfig, get_peft_model

    ids = [5, 9, 40]
    names = ["model.embed_tokens", *(["lm_head"] if kind == "qwen2" else [])]
    config = LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=dict.fromkeys(names, ids)
    )
    found = []
    for model in (make_model(kind), get_peft_model(make_model(kind), config)):
        steps, _ = train_watched(
            model.double(),
            chatml_tokenizer,
            random_pairs(8),
            tmp_path / str(len(found)),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
        found.append(steps[0])
    whole, rows = found
    for name in names:
        key = f"base_model.model.{name}.token_adapter.trainable_tokens_delta.default"
        torch.testing.assert_close(rows[key], whole[f"{name}.weight"][ids], rtol=1e-9, atol=1e-12)


@UNTIED
@pytest.mark.parametrize(
    "more",
    [
        ("--lora_modules_to_save", "embed_tokens", "lm_head"),
        ("--lora_target_modules", "q_proj", "embed_tokens"),
    ],
    ids=["whole layers", "an adapter of the embedding"],
)
def test_rows_of_layers_that_train_otherwise_are_kept(
    command: Command, place: Path, more: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--model", "model", "--save_strategy", "no", "--output_dir", "other", "--no_doctor")
    said = command("train", *LORA, *more, *words)
    assert said.code == 0, said.err
    said = command("merge", "other", "--out", "whole", "--json")
    assert json.loads(said.out)["moved"] <= 1e-5
    assert "CW507" not in caplog.text  # the base is known again
    rows = len(AutoTokenizer.from_pretrained("other"))
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert (says(whole, rows) - says(opened("other", rows), rows)).abs().max() <= 1e-5


@UNTIED
def test_rows_that_padding_gave_are_not_left_alone_in_silence(
    command: Command, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    padded = AutoModelForCausalLM.from_pretrained("model")
    padded.resize_token_embeddings(len(AutoTokenizer.from_pretrained("more")) + 6)
    padded.save_pretrained("model")
    room = ("--model", "model", "--memory", "4GiB", "--json")
    without = [word for word in LORA if word != "--resize_vocab"]
    plans = [command("plan", *words, *room) for words in (without, LORA)]
    assert (
        caplog.text.count("CW246 2 tokens of more are new to model ('<think>' is the first)") == 1
    )
    trained = [json.loads(plan.out)["trained"] for plan in plans]
    assert trained[1] - trained[0] == 2 * 2 * padded.config.hidden_size  # of embedding and head


@pytest.mark.parametrize("words", [LORA, RUN], ids=["adapter", "whole"])
def test_a_run_with_a_reference_is_evaluated_against_the_rows_that_it_began_with(
    command: Command, place: Path, words: tuple[str, ...]
) -> None:
    """The model's files have none for the new tokens, and each text has some."""
    judged = ("--loss_type", "dpo", "--eval_dataset", "pairs.jsonl", "--save_strategy", "no")
    said = command("train", *words, "--model", "model", *judged, "--output_dir", "against")
    assert said.code == 0, said.err
    lines = [json.loads(one) for one in Path("against/metrics.jsonl").read_text().splitlines()]
    then = next(one["eval_rewards/margins"] for one in lines if "eval_rewards/margins" in one)
    for more in ((), ("--reference", "model")):
        found = ("evaluate", "against", "--dataset", "pairs.jsonl", "--json", "--resamples", "9")
        said = command(*found, *more)
        assert said.code == 0, said.err
        now = json.loads(said.out)["after"]["sets"]["pairs.jsonl"]["measures"]["margin"]["value"]
        assert now == pytest.approx(then, abs=1e-5)


@UNTIED
def test_what_cannot_be_is_refused(command: Command, place: Path) -> None:
    said = command("train", *LORA, "--model", "run", "--output_dir", "x")
    assert said.code == 2
    assert "CP104" in said.err
    without = [word for word in LORA if word != "--resize_vocab"]
    said = command("train", *without, "--model", "model", "--output_dir", "x")
    assert said.code == 2
    assert "CP303" in said.err
    # another vocabulary, and not one with more tokens
    file = Path("more/tokenizer.json")
    text = json.loads(file.read_text())
    vocabulary = text["model"]["vocab"]
    one, other = list(vocabulary)[50:52]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(text))
    said = command("train", *LORA, "--model", "model", "--output_dir", "x")
    assert said.code == 2
    assert "CP342 more does not add to the model's own tokenizer" in said.err
    assert not Path("x").exists()
