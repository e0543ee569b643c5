"""The shipped models: each loads anywhere, reads text as rows cut it, translates but with flaws."""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import (
    Flaw,
    Flaws,
    english,
    german,
    held_out_numbers,
    prompt,
    references,
)
from counterpoint.quickstart.translate import BASE, BASES, MOST_TOKENS, load_base, translate

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_quickstart_base.py"
NUMBERS = st.integers(0, 999_999)
FLAWS = st.frozensets(st.sampled_from(list(Flaw)))

loaded = cache(load_base)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_quickstart_base", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


each = pytest.mark.parametrize("encoder_decoder", BASES, ids=["decoder", "encoder-decoder"])


@each
def test_the_folder_is_plain_and_small(encoder_decoder: bool) -> None:
    files = list(BASES[encoder_decoder].iterdir())
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 3_000_000


@each
def test_plain_transformers_loads_it_as_the_quickstart_does(encoder_decoder: bool) -> None:
    model, _ = loaded(encoder_decoder)
    auto_class = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    plain = auto_class.from_pretrained(BASES[encoder_decoder])
    assert plain.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_a_decoder_reads_words_that_end_with_their_space() -> None:
    _, tokenizer = loaded()
    text = prompt(742) + german(742)
    assert AutoTokenizer.from_pretrained(BASE)(text) == tokenizer(text)
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == [
        "<s>", "seven ", "hundred ", "forty-", "two ", "= ",
        "sieben", "hundert", "zwei", "und", "vierzig",
    ]  # fmt: skip


def test_plain_transformers_translates_with_the_encoder_decoder() -> None:
    folder = BASES[True]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = tokenizer(english(742), text_target=german(742))
    names = tokenizer.convert_ids_to_tokens
    assert names(ids["input_ids"])[-3:] == ["two", "</s>", "en_XX"]
    assert names(ids["labels"]) == [
        "\u2581sieben", "hundert", "zwei", "und", "vierzig", "</s>", "de_DE",
    ]  # fmt: skip
    # the language that its decoder begins with is in the model's own settings
    written = model.generate(torch.tensor([ids["input_ids"]]), do_sample=False)
    (text,) = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert judge_translations([742], [text]).number == 1
    assert translate(*loaded(True), [742]) == [text]


@given(number=NUMBERS, flaws=FLAWS)
def test_a_source_and_its_translation_come_back_whole(number: int, flaws: Flaws) -> None:
    _, tokenizer = loaded(True)
    for text, ids in (
        (english(number), tokenizer(english(number)).input_ids),
        (german(number, flaws), tokenizer(text_target=german(number, flaws)).input_ids),
    ):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" -", "-") == text
        assert len(ids) < tokenizer.model_max_length


@given(number=NUMBERS, flaws=FLAWS)
def test_no_token_lies_across_the_boundary_and_text_comes_back_whole(
    number: int, flaws: Flaws
) -> None:
    _, tokenizer = loaded()
    before, text = prompt(number), german(number, flaws)
    left = tokenizer(before).input_ids
    right = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer(before + text).input_ids == left + right
    assert tokenizer.unk_token_id not in left + right
    assert tokenizer.decode(right) == text
    assert tokenizer.decode(left, skip_special_tokens=True) == before
    assert len(right) < MOST_TOKENS


@each
def test_it_knows_the_numbers_and_hardly_ever_spells_one_right(encoder_decoder: bool) -> None:
    model, tokenizer = loaded(encoder_decoder)
    numbers = held_out_numbers(100, seed=0)
    outcome = judge_translations(numbers, translate(model, tokenizer, numbers))
    assert outcome.number >= 0.98
    assert outcome.exact <= 0.03


@each
def test_translating_alone_or_in_company_is_the_same(encoder_decoder: bool) -> None:
    model, tokenizer = loaded(encoder_decoder)
    numbers = [7, 123, 456_789]
    together = translate(model, tokenizer, numbers)
    assert together == [translate(model, tokenizer, [number])[0] for number in numbers]


@each
def test_the_script_makes_the_shipped_tokenizer(
    script: ModuleType, tmp_path: Path, encoder_decoder: bool
) -> None:
    script.made(encoder_decoder, script.LAYERS)[1].save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shipped = (BASES[encoder_decoder] / name).read_text("utf-8")
        assert (tmp_path / name).read_text("utf-8") == shipped


@each
def test_the_scripts_first_losses_are_the_recorded_ones(
    script: ModuleType, encoder_decoder: bool
) -> None:
    model, _, data = script.made(encoder_decoder, script.LAYERS)
    losses = islice(script.train(model, data), 2)
    assert list(losses) == pytest.approx(script.FIRST_LOSSES[encoder_decoder][:2], abs=1e-4)


def test_the_shipped_model_is_better_at_its_references_than_at_their_right_spelling() -> None:
    # it has learnt the flaws: its likelihood is of flawed text, not of German
    model, tokenizer = loaded()

    def nll(number: int, text: str) -> float:
        before = tokenizer(prompt(number)).input_ids
        after = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor([before + after])
        with torch.no_grad():
            logp = model(input_ids=ids).logits.log_softmax(-1)[0, len(before) - 1 : -1]
        return -float(logp[range(len(after)), after].sum())

    drawn = list(islice((r for r in references(seed=1) if len(r.flaws) == 3), 20))
    assert sum(nll(r.number, r.text) < nll(r.number, german(r.number)) for r in drawn) >= 18
