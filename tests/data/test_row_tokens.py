"""What ``tokens_of_row`` shows is what is trained: the ids, the targets, the cuts, the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from counterpoint import DataError
from counterpoint.config import TRUNCATIONS
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.row_tokens import Piece, RowTokens, texts_of, tokens_of_pair, tokens_of_row
from counterpoint.data.token_view import draw_tokens
from counterpoint.forward.layouts import PADDED
from counterpoint.records import TokenPair
from tests.tokenizers_on_the_spot import byte_level

ROWS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " Rome."},
    "chat": {
        "prompt": [{"role": "user", "content": "国会 in the warm sun"}],
        "chosen": [{"role": "assistant", "content": "The lazy dog sleeps, 鱼."}],
        "rejected": [{"role": "assistant", "content": "I am sorry, but I cannot help with that."}],
    },
    "no prompt": {"prompt": "", "chosen": "The fox jumps.", "rejected": "The dog sleeps."},
}
BYTES = PreTrainedTokenizerFast(
    tokenizer_object=byte_level(["<|endoftext|>"]), eos_token="<|endoftext|>"
)


def trained(raw: dict[str, Any], tokenizer: PreTrainedTokenizerFast, limits: Limits) -> TokenPair:
    """The pair that the trainer would get."""
    options = PrepareOptions(limits.max_length, limits.max_completion_length, limits.truncation)
    return next(iter(iter_pairs(prepare([raw], tokenizer, options))))


def ids(pieces: tuple[Piece, ...]) -> list[int]:
    """The ids that the model sees."""
    return [piece.id for piece in pieces if not piece.cut]


@pytest.mark.parametrize("policy", [name for name in TRUNCATIONS if name != "drop"])
@pytest.mark.parametrize("longest", [(1024, None), (24, None), (20, 3)])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_not_cut_is_what_is_trained_and_loss_is_what_is_a_target(
    chatml_tokenizer: PreTrainedTokenizerFast,
    name: str,
    longest: tuple[int, int | None],
    policy: str,
) -> None:
    limits = Limits(*longest, policy)
    try:
        pair = trained(ROWS[name], chatml_tokenizer, limits)
    except DataError as error:
        with pytest.raises(DataError, match=error.code):
            tokens_of_row(ROWS[name], 0, TextEncoder(chatml_tokenizer), limits)
        return
    shown = tokens_of_row(ROWS[name], 0, TextEncoder(chatml_tokenizer), limits)
    assert ids(shown.prompt) == pair.prompt
    assert (ids(shown.chosen), ids(shown.rejected)) == (pair.chosen, pair.rejected)
    targets = PADDED.collate([pair]).target_ids.tolist()
    assert [p.id for p in shown.chosen + shown.rejected if p.loss] == targets
    assert not any(piece.loss for piece in shown.prompt)


@pytest.mark.parametrize("policy", ["prompt_start", "prompt_end"])
def test_cut_tokens_stand_where_they_were(
    llama_tokenizer: PreTrainedTokenizerFast, policy: str
) -> None:
    tokenizer = TextEncoder(llama_tokenizer)
    whole = tokens_of_row(ROWS["text"], 0, tokenizer, Limits())
    completion = max(len(whole.chosen), len(whole.rejected))
    limits = Limits(completion + 4, None, policy)
    cut = tokens_of_row(ROWS["text"], 0, tokenizer, limits)
    assert [piece.id for piece in cut.prompt] == [piece.id for piece in whole.prompt]
    assert [piece.text for piece in cut.prompt] == [piece.text for piece in whole.prompt]
    size = len(whole.prompt)
    kept = [place for place, piece in enumerate(cut.prompt) if not piece.cut]
    start = policy == "prompt_start"
    assert kept == ([0, size - 3, size - 2, size - 1] if start else [0, 1, 2, 3])


def test_bos_eos_and_the_marks_of_a_template_are_special(
    chatml_tokenizer: PreTrainedTokenizerFast, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = tokens_of_row(ROWS["chat"], 0, TextEncoder(chatml_tokenizer), Limits())
    specials = [piece.text for piece in chat.prompt + chat.chosen if piece.special]
    assert specials == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    text = tokens_of_row(ROWS["text"], 0, TextEncoder(llama_tokenizer), Limits())
    assert [p.text for p in text.prompt + text.chosen if p.special] == ["<s>", "</s>"]


def test_nothing_predicts_the_first_token_of_a_row_without_a_prompt() -> None:
    pair = TokenPair(prompt=[], chosen=[5, 6, 0], rejected=[7, 0], row=3)
    shown = tokens_of_pair(pair, BYTES)
    assert [piece.loss for piece in shown.chosen] == [False, True, True]
    assert [piece.loss for piece in shown.rejected] == [False, True]
    assert shown.row == 3


def test_a_token_that_merges_over_the_boundary_is_counted_and_belongs_to_the_completions(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    raw = {"prompt": "x:", "chosen": "a", "rejected": "b"}
    shown = tokens_of_row(raw, 0, TextEncoder(merging_tokenizer), Limits())
    assert [piece.text for piece in shown.prompt] == ["x"]
    assert [piece.text for piece in shown.chosen] == [":a", "</s>"]
    assert [piece.text for piece in shown.rejected] == [":", "b", "</s>"]
    assert shown.boundary == 1


def test_completions_that_cutting_made_equal_are_flagged(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    raw = {"prompt": "p", "chosen": " the fox is old", "rejected": " the fox is young"}
    limits = Limits(max_completion_length=2)
    assert tokens_of_row(raw, 0, TextEncoder(gpt2_tokenizer), limits).same
    assert not tokens_of_row(raw, 0, TextEncoder(gpt2_tokenizer), Limits()).same


def test_what_the_chat_template_drops_is_shown(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {"role": "assistant", "content": "Good.", "thinking": "Hmm."}
    raw = {**ROWS["chat"], "prompt": [*ROWS["chat"]["prompt"], thought, *ROWS["chat"]["prompt"]]}
    shown = tokens_of_row(raw, 0, TextEncoder(chatml_tokenizer), Limits())
    assert shown.lost == ("drops thoughts of the prompt: 'Hmm.'",)
    assert "  the chat template drops thoughts of the prompt: 'Hmm.'\n" in draw_tokens(
        shown, name="a"
    )


def test_weight_and_margin_are_shown(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    raw = {**ROWS["text"], "weight": 2.0, "margin": 0.5}
    shown = tokens_of_row(raw, 9, TextEncoder(gpt2_tokenizer), Limits())
    assert (shown.row, shown.weight, shown.margin) == (9, 2.0, 0.5)
    assert shown.as_dict()["prompt"][0]["special"] is True


def test_a_row_that_is_refused_raises_its_own_code(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    raw = {**ROWS["text"], "chosen": " "}
    with pytest.raises(DataError, match=r"^CP203 row 5, field chosen: is blank"):
        tokens_of_row(raw, 5, TextEncoder(gpt2_tokenizer), Limits())


@given(st.text(), st.text())
@example("", "失瀀")  # one token ends the first character and begins the second
@example("", "失瀀瀀失瀀")
def test_the_texts_of_tokens_join_to_the_text(before: str, text: str) -> None:
    context, encoded = (
        BYTES(each, add_special_tokens=False)["input_ids"] for each in (before, text)
    )
    texts = texts_of(encoded, BYTES, context)
    assert len(texts) == len(encoded)
    assert "".join(texts) == text


@given(st.binary(max_size=12))
@example(b"\x80\x80\x80\xc2\x80")  # a character that begins where an earlier one could end
@example(b"a\xc2\x80\x80\x80\x80\xe9\xb1\xbc")
def test_tokens_that_end_inside_characters_never_lose_a_byte_of_text(raw: bytes) -> None:
    # every byte is a token of this vocabulary, so that any bytes can be written
    letters = dict(zip(range(256), map(_letter, range(256)), strict=True))
    encoded = [BYTES.convert_tokens_to_ids(letters[byte]) for byte in raw]
    texts = texts_of(encoded, BYTES)
    assert len(texts) == len(raw)
    whole = BYTES.decode(encoded)
    # what is no character is written as U+FFFD, how many of them depends on where it is cut
    assert "".join(texts).replace("\ufffd", "") == whole.replace("\ufffd", "")


def _letter(byte: int) -> str:
    """GPT-2's letter for a byte: itself where it can be printed, else from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [each for each in range(256) if each not in printable].index(byte))


def test_a_character_of_three_tokens_is_written_by_the_last() -> None:
    encoded = BYTES("a鱼b", add_special_tokens=False)["input_ids"]
    assert texts_of(encoded, BYTES) == ["a", "", "", "鱼", "b"]


def test_words_keep_the_space_that_a_sentencepiece_token_stands_for(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    shown = tokens_of_row(ROWS["text"], 0, TextEncoder(llama_tokenizer), Limits())
    assert "".join(piece.text for piece in shown.chosen) == " Paris.</s>"
    assert isinstance(shown, RowTokens)
