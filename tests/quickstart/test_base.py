"""The shipped model: loads anywhere, reads text as rows cut it, translates but with flaws."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import Flaw, Flaws, german, held_out_numbers, prompt, references
from counterpoint.quickstart.translate import BASE, MOST_TOKENS, load_base, translate

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


def test_the_folder_is_plain_and_small() -> None:
    files = list(BASE.iterdir())
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_plain_transformers_loads_it_as_the_quickstart_does() -> None:
    model, tokenizer = loaded()
    plain = AutoModelForCausalLM.from_pretrained(BASE)
    assert plain.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    text = prompt(742) + german(742)
    assert AutoTokenizer.from_pretrained(BASE)(text) == tokenizer(text)
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == [
        "<s>", "seven ", "hundred ", "forty-", "two ", "= ",
        "sieben", "hundert", "zwei", "und", "vierzig",
    ]  # fmt: skip


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


def test_it_knows_the_numbers_and_hardly_ever_spells_one_right() -> None:
    model, tokenizer = loaded()
    numbers = held_out_numbers(100, seed=0)
    outcome = judge_translations(numbers, translate(model, tokenizer, numbers))
    assert outcome.number >= 0.98
    assert outcome.exact <= 0.03


def test_translating_alone_or_in_company_is_the_same() -> None:
    model, tokenizer = loaded()
    numbers = [7, 123, 456_789]
    together = translate(model, tokenizer, numbers)
    assert together == [translate(model, tokenizer, [number])[0] for number in numbers]


def test_the_script_makes_the_shipped_tokenizer(script: ModuleType, tmp_path: Path) -> None:
    script.build_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text("utf-8") == (BASE / name).read_text("utf-8")


def test_the_scripts_first_losses_are_the_recorded_ones(script: ModuleType) -> None:
    tokenizer = script.build_tokenizer()
    losses = islice(script.train(script.build_model(len(tokenizer)), tokenizer), 2)
    assert list(losses) == pytest.approx(script.FIRST_LOSSES[:2], abs=1e-4)


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
