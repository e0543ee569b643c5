"""A text spelt piece by piece is the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from counterpoint.data.vocabularies import text_of
from counterpoint.evaluation.spelling import UNFINISHED, Spelling
from counterpoint.visible import visible

TEXTS = ["naïve café — 国会由众议院 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👩‍👩‍👧\r\nnext\rline", "", "a\ufffdb"]


def pieces(spells, ids: list[int]) -> list[str]:
    spelling = Spelling(spells)
    return [*(spelling.more(ids[:end]) for end in range(1, len(ids) + 1)), spelling.rest(ids)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "chatml"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_and_none_cuts_a_character(
    request: pytest.FixtureRequest, kind: str, text: str
):
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(f"{kind}_tokenizer")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = text_of(tokenizer, ids)
    found = pieces(lambda some: text_of(tokenizer, some), ids)
    assert "".join(found) == whole
    assert "".join(map(visible, found)) == visible(whole)
    if UNFINISHED not in text:
        assert UNFINISHED not in "".join(found)


@given(st.binary(max_size=40))
def test_whatever_bytes_come_the_pieces_are_the_text(given: bytes):
    def spells(ids) -> str:
        return bytes(ids).decode("utf-8", "replace")

    found = pieces(spells, list(given))
    assert "".join(found) == spells(given)
    assert "".join(map(visible, found)) == visible(spells(given))


def test_a_beginning_that_later_tokens_change_is_written_anew():
    def spells(ids) -> str:
        return "".join(map(chr, ids)).replace(" .", ".")

    assert pieces(spells, list(b"a .b")) == ["a", " ", "", "", "\na.b"]
