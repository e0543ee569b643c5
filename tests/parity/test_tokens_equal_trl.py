"""Token ids and labels equal TRL 1.16's where TRL is right: no merge, no template, one EOS."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from counterpoint.data.formats import to_preference_row
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.sources import load
from counterpoint.records import TokenPair

HH = "hh-rlhf-harmless-base-test.jsonl.gz"
LENGTH = 200
EXPLICIT = [
    {
        "prompt": "What is the capital of France?",
        "chosen": " Paris.",
        "rejected": " I cannot help.",
    },
    {"prompt": "Count:\n", "chosen": "1 2 3\n", "rejected": "3 2"},
    {"prompt": "", "chosen": "Without a prompt", "rejected": "And another"},
    {"prompt": "Long " + "word " * 20, "chosen": "fox " * 300, "rejected": "dog"},
]


@pytest.fixture(scope="module")
def trl_row() -> Any:
    """TRL's own functions on one row: the implicit prompt, then ``tokenize_row``."""
    pytest.importorskip("trl", reason="trl is not installed; it is only the rival")
    from accelerate import PartialState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL warns that its CPO is experimental
        from trl.data_utils import maybe_extract_prompt
        from trl.experimental.cpo import CPOTrainer
    PartialState()  # TRL's logger asks for it

    def tokenized(row: dict, tokenizer: PreTrainedTokenizerFast, *, extract: bool = True) -> dict:
        trainer = CPOTrainer.__new__(CPOTrainer)
        trainer.processing_class = tokenizer
        trainer.max_length = LENGTH
        trainer.is_encoder_decoder = False
        return trainer.tokenize_row(maybe_extract_prompt(row) if extract else row)

    return tokenized


TOKENIZERS = ["chatml_tokenizer", "gpt2_tokenizer", "llama_tokenizer"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def as_in_trl() -> Callable[[dict[str, Any]], dict[str, list[int]]]:
    """The function of docs/from-trl.md, as it is printed there."""
    page = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text(encoding="utf-8")
    block = next(one for one in page.split("```python\n")[1:] if "def as_in_trl" in one)
    names: dict[str, Any] = {}
    exec(block.split("\n\nrows = ")[0], names)
    return names["as_in_trl"]


def columns(pair: TokenPair) -> dict[str, list[int]]:
    """A pair as TRL writes it: whole sequences, and labels of -100 over the prompt."""
    ids = {f"{part}_ids": list(getattr(pair, part)) for part in ("prompt", "chosen", "rejected")}
    return as_in_trl()(ids)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prepared_row_has_the_columns_that_trl_s_has(
    gpt2_tokenizer: PreTrainedTokenizerFast, trl_row: Any, streaming: bool
) -> None:
    rows = EXPLICIT[:2]
    data = Dataset.from_list(rows)
    given = data.to_iterable_dataset() if streaming else data
    found = list(prepare(given, gpt2_tokenizer, PrepareOptions(max_length=LENGTH)).pairs)
    for row, ours in zip(rows, found, strict=True):
        theirs = trl_row(row, gpt2_tokenizer)
        assert ours["prompt_input_ids"] == theirs["prompt_input_ids"] == ours["prompt_ids"]
        made = {**ours, **as_in_trl()(ours)}
        named = [name for name in theirs if name.split("_", 1)[0] in ("chosen", "rejected")]
        ids = [name for name in named if "_" in name]
        assert len(ids) == 6
        assert {name: made[name] for name in ids} == {name: theirs[name] for name in ids}


@pytest.mark.parametrize("row", EXPLICIT)
def test_rows_with_a_prompt_are_equal(
    tokenizer: PreTrainedTokenizerFast, trl_row: Any, row: dict
) -> None:
    (pair,) = iter_pairs(prepare([row], tokenizer, PrepareOptions(max_length=LENGTH)))
    theirs = trl_row(row, tokenizer)
    assert columns(pair) == {name: theirs[name] for name in columns(pair)}


def test_other_implicit_prompts_are_equal(
    gpt2_tokenizer: PreTrainedTokenizerFast, trl_row: Any
) -> None:
    row = {"chosen": "The capital is Paris, I help.", "rejected": "The capital is Rome."}
    (pair,) = iter_pairs(prepare([row], gpt2_tokenizer, PrepareOptions(max_length=LENGTH)))
    theirs = trl_row(row, gpt2_tokenizer)
    assert columns(pair) == {name: theirs[name] for name in columns(pair)}


def test_transcripts_of_hh_are_equal_where_the_answers_differ_from_their_first_word(
    real_data: Path, tokenizer: PreTrainedTokenizerFast, trl_row: Any
) -> None:
    """TRL takes words with which both answers begin for prompt; with others the two agree.

    Where they do begin alike the sequences still agree, and only the labels differ.
    """
    raw = load(real_data / HH).select(range(0, 2312, 12))
    options = PrepareOptions(max_length=LENGTH, truncation="drop", invalid_rows="drop")
    equal = alike = 0
    for pair in iter_pairs(prepare(raw, tokenizer, options)):
        ours, theirs = columns(pair), trl_row(raw[pair.row], tokenizer)
        row = to_preference_row(raw[pair.row], pair.row)
        for name in ("chosen_input_ids", "rejected_input_ids"):
            assert ours[name] == theirs[name]
        if row.chosen[:2] == row.rejected[:2]:
            alike += 1
            assert sum(label == -100 for label in theirs["chosen_labels"]) >= len(pair.prompt)
        else:
            equal += 1
            for name in ("chosen_labels", "rejected_labels"):
                assert ours[name] == theirs[name]
    assert equal > alike > 0
