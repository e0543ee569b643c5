"""Tokens of a pair: where the prompt ends, one BOS, one EOS, whatever the tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from counterpoint.data.chat import Rendered, render
from counterpoint.data.tokenize import PairTokenizer, Tokens
from counterpoint.errors import ModelError
from counterpoint.preference_row import PreferenceRow


def text_row(prompt: str, chosen: str, rejected: str) -> Rendered:
    return Rendered(prompt, prompt + chosen, prompt + rejected)


def chat_row(question: str = "Hi?", good: str = "Good.", bad: str = "Bad.") -> PreferenceRow:
    turn = {"role": "user", "content": question}
    answers = ([{"role": "assistant", "content": text}] for text in (good, bad))
    return PreferenceRow([turn], *answers, row=0)


def one(row: Rendered, tokenizer: Any) -> Tokens:
    return PairTokenizer(tokenizer)([row])[0]


TEXTS = st.text("ab :\n.é国", min_size=1, max_size=12)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=5))
def test_no_character_is_lost_and_each_side_ends_with_one_eos(
    chatml_tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> None:
    rendered = [text_row(*row) for row in rows]
    eos = chatml_tokenizer.eos_token_id
    for row, tokens in zip(rendered, PairTokenizer(chatml_tokenizer)(rendered), strict=True):
        for text, side in ((row.chosen, tokens.chosen), (row.rejected, tokens.rejected)):
            assert chatml_tokenizer.decode(tokens.prompt + side[:-1]) == text
            assert side.count(eos) == 1
            assert side[-1] == eos


@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5))
def test_a_batch_is_its_rows(
    llama_tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> None:
    rendered = [text_row(*row) for row in rows]
    single = [one(row, llama_tokenizer) for row in rendered]
    assert PairTokenizer(llama_tokenizer)(rendered) == single


def test_where_nothing_merges_the_prompt_is_its_own_encoding(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    def ids(text: str) -> list[int]:
        return gpt2_tokenizer(text, add_special_tokens=False)["input_ids"]

    end = gpt2_tokenizer.eos_token_id
    tokens = one(text_row("The capital:", " Paris", " Rome"), gpt2_tokenizer)
    assert tokens == Tokens(
        prompt=[end, *ids("The capital:")],
        chosen=[*ids(" Paris"), end],
        rejected=[*ids(" Rome"), end],
        moved=0,
    )


def test_a_token_that_reaches_over_the_boundary_belongs_to_the_completions(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    def pieces(ids: list[int]) -> list[str]:
        return merging_tokenizer.convert_ids_to_tokens(ids)

    tokens = one(text_row("Q:", "ax", "bx"), merging_tokenizer)
    assert pieces(tokens.prompt) == ["Q"]
    assert pieces(tokens.chosen) == [":a", "x", "</s>"]
    assert pieces(tokens.rejected) == [":", "b", "x", "</s>"]
    assert tokens.moved == 1


def test_a_generation_prompt_that_the_answer_lacks_belongs_to_the_completions(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    tokens = one(render(chat_row(), tokenizer), tokenizer)
    assert tokenizer.decode(tokens.prompt).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(tokens.chosen) == "Good.<|im_end|>"
    assert tokens.moved > 0


@pytest.mark.parametrize("text", ["Say", "<s>Say", "<s><s>Say"])
def test_exactly_one_bos_stands_at_the_start(
    llama_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    bos = llama_tokenizer.bos_token_id
    tokens = one(text_row(text, " a b", " c d"), llama_tokenizer)
    assert tokens.prompt[0] == bos
    assert (tokens.prompt + tokens.chosen + tokens.rejected).count(bos) == 1


def test_the_bos_of_a_template_is_not_doubled(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = one(render(chat_row(), llama_tokenizer), llama_tokenizer)
    assert tokens.prompt.count(llama_tokenizer.bos_token_id) == 1
    assert llama_tokenizer.decode(tokens.chosen).strip() == "Good.</s>"


def test_without_a_bos_token_none_is_invented(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = one(text_row("Say", " a", " b"), chatml_tokenizer)
    assert chatml_tokenizer.decode(tokens.prompt) == "Say"


def test_an_empty_prompt_is_bos_alone(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = one(text_row("", "ab", "cd"), llama_tokenizer)
    assert tokens.prompt == [llama_tokenizer.bos_token_id]
    assert llama_tokenizer.decode(tokens.chosen).strip() == "ab</s>"


def test_what_a_template_writes_after_eos_is_cut(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokens = one(render(chat_row(), chatml_tokenizer), chatml_tokenizer)
    assert chatml_tokenizer.decode(tokens.chosen) == "Good.<|im_end|>"
    assert chatml_tokenizer.decode(tokens.rejected) == "Bad.<|im_end|>"


@pytest.mark.parametrize(
    ("written", "trained"),
    [
        ("x<|im_end|><|im_end|>", "x<|im_end|>"),
        ("x<|im_end|> \n ", "x<|im_end|>"),
        ("x<|im_end|>y", "x<|im_end|>y<|im_end|>"),
        ("x\n", "x\n<|im_end|>"),
    ],
)
def test_eos_ends_a_completion_once(
    chatml_tokenizer: PreTrainedTokenizerFast, written: str, trained: str
) -> None:
    tokens = one(text_row("Say ", written, "z"), chatml_tokenizer)
    assert chatml_tokenizer.decode(tokens.chosen) == trained


def test_padding_with_eos_changes_nothing(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    padded = copy.deepcopy(llama_tokenizer)
    padded.pad_token = padded.eos_token
    row = text_row("Say", " a", " b")
    assert one(row, padded) == one(row, llama_tokenizer)
    assert one(row, padded).chosen[-1] == padded.eos_token_id


def test_a_tokenizer_without_eos_is_refused(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"CP302"):
        PairTokenizer(tokenizer)


class Letters(PreTrainedTokenizer):
    """A slow tokenizer: one id a character."""

    def __init__(self, **kwargs: Any) -> None:
        self.letters = {chr(code): code - 29 for code in range(32, 127)}
        super().__init__(eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return 98

    def get_vocab(self) -> dict[str, int]:
        return {**self.letters, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index + 29)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple:
        return (str(Path(save_directory) / "none"),)


def test_a_slow_tokenizer_works_as_well() -> None:
    tokenizer = Letters()
    tokens = one(text_row("Say", " a", " b"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokens.prompt) == ["S", "a", "y"]
    assert tokenizer.convert_ids_to_tokens(tokens.chosen) == [" ", "a", "</s>"]
