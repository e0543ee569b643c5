"""Encoding the shared part of a prompt once gives the ids of encoding it three times."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from counterpoint.data.chat import Rendered
from counterpoint.data.heads import WORD_RULES, HeadCut, head_cut
from counterpoint.data.tokenize import encode_threefold
from tests.tokenizers_on_the_spot import byte_level

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def by_rule(rule: str | None) -> PreTrainedTokenizerFast:
    backend = byte_level(MARKS)
    if rule is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(rule), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="module", params=[None, *sorted(WORD_RULES)])
def worded(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return by_rule(request.param)


PIECES = [*"abS1 2\n\t\r.,!'/:_-é国ñ\u0301\u00a0\u2003<>|", "'s", "'ll", " a b ", "  ", "the cat"]
TEXT = st.lists(st.sampled_from([*PIECES, *MARKS]), max_size=14).map("".join)


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_cutting_prompts_changes_no_token(
    worded: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> None:
    rendered = [Rendered(p, p + c, p + r) for p, c, r in rows]
    cut = head_cut(worded)
    for row in rendered:  # one by one, so that the check of a batch's first row proves nothing
        head = cut.find(row.prompt)
        parts = [worded(t, add_special_tokens=False)["input_ids"] for t in _halves(row, head)]
        whole = worded([row.prompt, row.chosen, row.rejected], add_special_tokens=False)
        assert [parts[0] + rest for rest in parts[1:]] == whole["input_ids"]
    assert encode_threefold(rendered, worded, cut) == encode_threefold(rendered, worded, HeadCut())


def _halves(row: Rendered, head: int) -> list[str]:
    return [row.prompt[:head], *(text[head:] for text in (row.prompt, row.chosen, row.rejected))]


def test_the_cut_lies_at_the_last_word_or_mark(worded: PreTrainedTokenizerFast) -> None:
    cut = head_cut(worded)
    assert cut.find("Human: what is it?\n\nAssistant:") == len("Human: what is")
    start = "<|im_start|>user\n国会<|im_end|>\n"
    assert cut.find(f"{start}<|im_start|>assistant\n") == len(start)
    assert cut.find("国会") == 0


def test_nothing_is_believed_of_unknown_tokenizers(
    llama_tokenizer: PreTrainedTokenizerFast, merging_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert head_cut(llama_tokenizer) == HeadCut()
    assert head_cut(merging_tokenizer) == HeadCut()
    assert head_cut(by_rule(r"\p{L}+ \p{L}+|.")) == HeadCut()
    prefixed = byte_level(MARKS)
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert head_cut(PreTrainedTokenizerFast(tokenizer_object=prefixed)) == HeadCut()
    random = byte_level(MARKS)
    random.model = models.BPE(vocab={"a": 0}, merges=[], dropout=0.5)
    assert head_cut(PreTrainedTokenizerFast(tokenizer_object=random)) == HeadCut()


def test_added_tokens_that_reach_into_others_forbid_cuts() -> None:
    def with_added(*tokens: AddedToken) -> HeadCut:
        backend = Tokenizer.from_str(byte_level(MARKS).to_str())
        backend.add_tokens(list(tokens))
        return head_cut(PreTrainedTokenizerFast(tokenizer_object=backend))

    assert with_added(AddedToken("new york")).words is False
    assert with_added(AddedToken("x<|", normalized=False)).marks == ()
    assert with_added(AddedToken("<mask>", lstrip=True)) == HeadCut()
    assert with_added(AddedToken("<tool>")).marks == tuple(MARKS)


def test_a_wrong_belief_is_noticed_and_costs_no_token(
    llama_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Rendered("Say a b", "Say a b c", "Say a b d")]
    with caplog.at_level(logging.WARNING):
        ids = encode_threefold(rows, llama_tokenizer, HeadCut(words=True))
    assert ids == encode_threefold(rows, llama_tokenizer, HeadCut())
    assert "cannot encode prompts in parts" in caplog.text
