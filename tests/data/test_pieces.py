"""Texts encoded in pieces, each piece once, have the ids of texts encoded whole."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from counterpoint.data import tokenize
from counterpoint.data.chat import Rendered
from counterpoint.data.pieces import CUT, WORD_RULES, may_be_cut, split
from counterpoint.data.tokenize import PairTokenizer, encode
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


def whole(rows: list[Rendered], tokenizer: PreTrainedTokenizerFast) -> list[list[list[int]]]:
    return [encode([row.prompt, row.chosen, row.rejected], tokenizer) for row in rows]


def in_pieces(rows: list[Rendered], tokenizer: PairTokenizer) -> list[list[list[int]]]:
    return [[ids.head + rest for rest in ids[1:]] for ids in tokenizer.encode(rows)]


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_cutting_texts_changes_no_token(
    worded: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> None:
    assert may_be_cut(worded)
    rendered = [Rendered(p, p + c, p + r) for p, c, r in rows]
    for texts in rendered:  # by hand, since the tokenizer itself would notice and mend
        for text in (texts.prompt, texts.chosen, texts.rejected):
            parts = encode(split(text), worded)
            assert [id_ for ids in parts for id_ in ids] == encode([text], worded)[0]
    tokenizer = PairTokenizer(worded)
    assert in_pieces(rendered, tokenizer) == whole(rendered, worded)
    assert in_pieces(rendered, tokenizer) == whole(rendered, worded)  # all of it known by now
    assert tokenizer.cut


@given(text=TEXT)
def test_the_pieces_are_those_between_the_cuts(text: str) -> None:
    assert split(text) == CUT.split(text)


def test_completions_that_do_not_begin_with_the_prompt_are_encoded_for_themselves() -> None:
    worded = by_rule(None)
    rows = [Rendered("Who is it? Say.", "Who was it? I", "Who is it? We")]
    assert in_pieces(rows, PairTokenizer(worded)) == whole(rows, worded)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "MOST_KNOWN", 5)
    worded = by_rule(None)
    tokenizer = PairTokenizer(worded)
    rows = [Rendered(f"is {w} so", f"is {w} so very", f"is {w} so not") for w in "abcdef"]
    for row in rows:
        assert in_pieces([row], tokenizer) == whole([row], worded)
        assert len(tokenizer._known) <= 5
    long = "x" * (tokenize.LONGEST_KNOWN + 1)
    tokenizer.encode([Rendered(long, f"{long} a", f"{long} b")])
    assert long not in tokenizer._known


def test_nothing_is_believed_of_unknown_tokenizers(
    llama_tokenizer: PreTrainedTokenizerFast, merging_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert not may_be_cut(llama_tokenizer)
    assert not may_be_cut(merging_tokenizer)
    assert not may_be_cut(by_rule(r"\p{L}+ \p{L}+|."))
    prefixed = byte_level(MARKS)
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not may_be_cut(PreTrainedTokenizerFast(tokenizer_object=prefixed))
    random = byte_level(MARKS)
    random.model = models.BPE(vocab={"a": 0}, merges=[], dropout=0.5)
    assert not may_be_cut(PreTrainedTokenizerFast(tokenizer_object=random))
    lowered = byte_level(MARKS)
    lowered.normalizer = normalizers.Lowercase()
    assert not may_be_cut(PreTrainedTokenizerFast(tokenizer_object=lowered))


@pytest.mark.parametrize(
    ("token", "harmless"),
    [
        (AddedToken("new york"), False),
        (AddedToken("x<|", normalized=False), False),
        (AddedToken("<mask>", lstrip=True), False),
        (AddedToken("cat", single_word=True), False),
        (AddedToken("<tool>"), True),
        (AddedToken("cat"), True),
    ],
)
def test_added_tokens_that_reach_over_a_cut_forbid_all(token: AddedToken, harmless: bool) -> None:
    backend = byte_level(MARKS)
    backend.add_tokens([token])
    assert may_be_cut(PreTrainedTokenizerFast(tokenizer_object=backend)) is harmless


def test_a_wrong_belief_is_noticed_and_costs_no_token(
    llama_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Rendered("Say a b", "Say a b c", "Say a b d")]
    tokenizer = PairTokenizer(llama_tokenizer, cut=True)
    with caplog.at_level(logging.WARNING):
        assert in_pieces(rows, tokenizer) == whole(rows, llama_tokenizer)
    assert "cannot encode texts in pieces" in caplog.text
    assert not tokenizer.cut
