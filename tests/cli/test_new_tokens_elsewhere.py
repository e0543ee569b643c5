"""``--resize_vocab`` beside an adapter on models that are no decoders of text alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
)

from counterpoint.errors import ModelError
from counterpoint.models.vocabulary import check_rows, embedding_names, grow_embeddings
from tests.cli.conftest import Command, write_pairs
from tests.models_on_the_spot import make_model
from tests.translators_on_the_spot import ROWS as TRANSLATED
from tests.translators_on_the_spot import translator
from tests.vision_on_the_spot import encoded, seer

ADDED = ["<think>", "</think>"]
TRAIN = (
    *("train", "--model", "model", "--dataset", "pairs.jsonl", "--output_dir", "run"),
    *("--resize_vocab", "--tokenizer", "more", "--lora_r", "2", "--no_doctor"),
    *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--max_steps", "3"),
)
LANGUAGES = {
    "nllb": ("--source_lang", "eng_Latn", "--target_lang", "deu_Latn"),
    "mbart": ("--source_lang", "en_XX", "--target_lang", "de_DE"),
}


def thinking(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": f"<think> {row['chosen']} </think> {row['chosen']}"}


def translator_in(folder: Path, kind: str) -> Any:
    """A translator in a folder, its tokenizer with two tokens more in another, and rows."""
    model, tokenizer = translator(kind)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    more = AutoTokenizer.from_pretrained(folder / "model")
    more.add_tokens(ADDED)
    more.save_pretrained(folder / "more")
    write_pairs(folder / "pairs.jsonl", [thinking(row) for row in TRANSLATED])
    return AutoModelForSeq2SeqLM


def seer_in(folder: Path, kind: str) -> Any:
    """The same of a model that sees, with rows about pictures."""
    model, processor = seer(kind)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    more = AutoProcessor.from_pretrained(folder / "model")
    more.tokenizer.add_tokens(ADDED)
    more.save_pretrained(folder / "more")
    rows = []
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(number))
        row = {"prompt": "What is it?", "chosen": f" {number}.", "rejected": " Nothing, I fear."}
        rows.append({**thinking(row), "images": [f"{number}.png"]})
    write_pairs(folder / "pairs.jsonl", rows)
    return AutoModelForImageTextToText


def says(model: Any, new: list[int], *, encodes: bool) -> torch.Tensor:
    """Log-probabilities of a text with both new tokens, which are also predicted."""
    ids = torch.tensor([[7, new[0], 9, new[1], 12, new[0]]])
    more = {"decoder_input_ids": ids.flip(1)} if encodes else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, translator_in) for kind in ("t5", "nllb", "mbart")),
        *((kind, seer_in) for kind in ("llava", "gemma3")),
    ],
)
def test_new_tokens_are_trained_opened_by_peft_and_merged(
    kind: str,
    make: Callable[[Path, str], Any],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    auto, encodes = make(tmp_path, kind), make is translator_in
    said = command(*TRAIN, *LANGUAGES.get(kind, ()))
    assert said.code == 0, said.err
    new = AutoTokenizer.from_pretrained("run").convert_tokens_to_ids(ADDED)
    rows = max(new) + 1
    held = load_file("run/adapter_model.safetensors")
    assert all(len(w) < rows for w in held.values())  # no embedding is saved whole
    moved = [w for name, w in held.items() if "trainable_tokens_delta" in name]
    assert len(moved) == (2 if kind == "llava" else 1)  # the others' heads are tied
    assert all((w[0] - w[1]).abs().max() > 1e-3 for w in moved)

    plain = auto.from_pretrained("model")
    torch.manual_seed(5)
    had = plain.get_input_embeddings().weight.shape[0]
    if rows > had:
        plain.resize_token_embeddings(rows)  # as the manual of PEFT has it
    adapted = PeftModel.from_pretrained(plain, "run")
    said = command("merge", "run", "--out", "whole", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["moved"] <= 1e-5
    whole = auto.from_pretrained("whole")
    one, other = (says(model, new, encodes=encodes) for model in (adapted, whole))
    assert (one - other).abs().max() <= 1e-5
    untrained = says(auto.from_pretrained("model"), [3, 5], encodes=encodes)
    assert untrained.shape[-1] == had
    said = command("evaluate", "run", "--dataset", "pairs.jsonl")
    assert said.code == 0, said.err


def test_a_head_is_tied_only_where_its_class_ties_it() -> None:
    """A configuration may say so in vain; the head's new rows must train all the same."""
    model, _ = seer("qwen3_vl_moe")
    assert model.config.get_text_config().tie_word_embeddings
    assert embedding_names(model) == ["model.language_model.embed_tokens", "lm_head"]
    for kind in ("t5", "nllb"):
        (name,) = embedding_names(make_model(kind))
        assert name.endswith("shared")


@pytest.mark.parametrize("kind", ["t5", "mt5", "qwen2_tied"])
def test_a_head_of_its_own_stays_one_when_rows_are_added(kind: str, tmp_path: Path) -> None:
    """transformers ties by the configuration when it resizes, whatever the files hold (T5 1.1)."""
    model = translator(kind)[0] if kind == "mt5" else make_model(kind)
    head = model.get_output_embeddings()
    torch.manual_seed(0)
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    both = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [one.weight.detach().clone() for one in both]
    rows = len(before[0])
    assert model.config.tie_word_embeddings
    assert not torch.equal(*before)
    assert grow_embeddings(model, rows + 2) == 2
    for module, had in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True
    ):
        assert torch.equal(module.weight[:rows], had)
        torch.testing.assert_close(module.weight[-1], had.double().mean(0).float())
    if model.config.is_encoder_decoder:  # both sides read one embedding, as before
        sides = [model.get_encoder().embed_tokens, model.get_decoder().embed_tokens]
        assert all(one.weight is model.get_input_embeddings().weight for one in sides)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_a_fact_that_forbids_new_rows_is_named() -> None:
    model, _ = seer("mllama")
    read, written = (one.weight.shape[0] for one in (model.get_input_embeddings(), model.lm_head))
    check_rows(model, written)
    fact = rf"^CP341 .* reads {read} tokens and writes {written}, so that no row"
    with pytest.raises(ModelError, match=fact):
        check_rows(model, written + 1)  # a picture's row is not a new token's
    with pytest.raises(ModelError, match=fact):
        grow_embeddings(model, read + 1)
    model, _ = seer("gemma4_small")
    with pytest.raises(ModelError, match=r"^CP341 .* in every layer, from a second embedding"):
        grow_embeddings(model, model.config.get_text_config().vocab_size + 1)


def test_a_head_of_its_own_that_the_configuration_ties_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in T5 1.1: transformers says that all of the family are tied, and the files differ."""
    monkeypatch.chdir(tmp_path)
    auto = translator_in(tmp_path, "t5")
    model = auto.from_pretrained("model")
    model.config.tie_word_embeddings = False
    type(model)(model.config).save_pretrained("model")
    said = command(*TRAIN)
    assert said.code == 2, said.err
    assert "CP341 T5ForConditionalGeneration has a weight of its own as lm_head" in said.err
    words = ("--save_strategy", "no", "--lora_modules_to_save")
    unread = command(*TRAIN, *words, "shared", "lm_head")
    assert "CP307 nothing of T5ForConditionalGeneration reads shared itself" in unread.err
    said = command(*TRAIN, *words, "embed_tokens", "lm_head")
    assert said.code == 0, said.err
    base = auto.from_pretrained("model")
    rows = len(AutoTokenizer.from_pretrained("more"))
    grow_embeddings(base, rows)
    held = load_file("run/adapter_model.safetensors")
    whole = {name: one for name, one in held.items() if len(one) == rows}
    parts = ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    assert len(whole) == len(parts)
    for part in parts:  # each is there, and has moved from the base's own
        (trained,) = (one for name, one in whole.items() if f"{part}." in name)
        assert 0 < (trained - base.get_submodule(part).weight).abs().max() < 0.1
    new = AutoTokenizer.from_pretrained("run").convert_tokens_to_ids(ADDED)
    plain = auto.from_pretrained("model")
    plain.resize_token_embeddings(rows)  # which ties the head; the adapter has its own
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        adapted = PeftModel.from_pretrained(plain, "run")
    merged = command("merge", "run", "--out", "whole", "--json")
    assert merged.code == 0, merged.err
    one, other = (says(m, new, encodes=True) for m in (adapted, auto.from_pretrained("whole")))
    assert (one - other).abs().max() <= 1e-5
