"""A gold completion stands beside its pair, under the same prompt, or the row is refused."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from counterpoint.data.encoder import TextEncoder
from counterpoint.data.gold import as_read
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.pair_digest import pairs_digest
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.token_view import draw_tokens
from counterpoint.errors import DataError
from counterpoint.records import TokenPair

GOLD = PrepareOptions(gold=True)
ROW: dict[str, Any] = {"prompt": "Say 1:", "chosen": " one", "rejected": " two"}
ASKED = [{"role": "user", "content": "Say 1"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def prepared(rows: Any, tokenizer: Any, options: PrepareOptions = GOLD) -> list[TokenPair]:
    return list(iter_pairs(prepare(rows, tokenizer, options)))


SHAPES: dict[str, tuple[dict[str, Any], Any]] = {
    "text": (ROW, " one, as you wish"),
    "text without a prompt": (
        {"chosen": "Say 1: one", "rejected": "Say 1: two"},
        "Say 1: one, as you wish",
    ),
    "a transcript": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        "\n\nHuman: Hi\n\nAssistant: Well, yes",
    ),
    "messages": (
        {"prompt": ASKED, "chosen": answer("one"), "rejected": answer("two")},
        answer("one it is"),
    ),
    "messages and texts": ({"prompt": ASKED, "chosen": "one", "rejected": "two"}, "one it is"),
    "whole dialogues": (
        {"chosen": [*ASKED, *answer("one")], "rejected": [*ASKED, *answer("two")]},
        [*ASKED, *answer("one it is")],
    ),
    "answers in a list": (
        {"instruction": "Say 1", "output": ["one", "two"]},
        "one it is",
    ),
    "HelpSteer": (
        {
            **{"prompt": "Say 1", "response_1": "two", "response_2": "one"},
            "preference_strength": 2,
        },
        "one it is",
    ),
}


@pytest.mark.parametrize("column", ["gold", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_it_would_be_as_the_chosen_one(
    shape: str, column: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    row, gold = SHAPES[shape]
    (found,) = prepared([{**row, column: gold}], chatml_tokenizer)
    (pair,) = prepared([row], chatml_tokenizer, PrepareOptions())
    given = {"chosen": gold, "rejected": row.get("rejected") or "two", "prompt": row.get("prompt")}
    if shape in ("answers in a list", "HelpSteer"):
        given = {"prompt": ASKED, "chosen": gold, "rejected": "two"}
    (other,) = prepared([given], chatml_tokenizer, PrepareOptions())
    assert found.prompt == pair.prompt == other.prompt
    assert (found.chosen, found.rejected, found.gold) == (pair.chosen, pair.rejected, other.chosen)


@pytest.mark.parametrize("same", ["chosen", "rejected"])
def test_it_may_equal_one_of_the_pair(same: str, chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    (found,) = prepared([{**ROW, "gold": ROW[same]}], chatml_tokenizer)
    assert found.gold == getattr(found, same)


def test_a_loss_without_one_reads_neither_column(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = Dataset.from_list([{**ROW, "gold": " one!", "reference": " 1"}])
    found = prepare(rows, chatml_tokenizer)
    assert not {"gold_ids", "gold_given"} & {*found.pairs.column_names}
    bare = prepare([ROW], chatml_tokenizer)
    assert pairs_digest(found.pairs) == pairs_digest(bare.pairs)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, r"CP236.*row 0 has no gold completion.*column gold or reference"),
    "null": ({"gold": None}, r"CP236.*row 0 has no gold completion"),
    "blank": ({"gold": "  "}, r"CP203.*row 0, field gold: is blank"),
    "a number": ({"reference": 3}, r"CP202.*row 0, field reference"),
    "messages beside text": (
        {"gold": answer("one")},
        r"CP202.*row 0, field rejected: and field gold must both be text",
    ),
    "of another prompt": (
        {"prompt": None, "chosen": "Say 1: one", "rejected": "Say 1: two", "gold": "Tell me: one"},
        r"CP206.*row 0, field gold: and field rejected share no beginning",
    ),
    "of a prompt that ends elsewhere": (
        {"prompt": None, "chosen": "Say 1: one", "rejected": "Say 1: two", "gold": "Say it: one"},
        r"CP236.*row 0, field gold: does not begin with the prompt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_none_is_refused_by_its_row(
    case: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    more, said = REFUSED[case]
    with pytest.raises(DataError, match=said):
        prepared([{**ROW, **more}], chatml_tokenizer)
    options = PrepareOptions(gold=True, invalid_rows="drop")
    good = {**ROW, "gold": " one!", "reference": None}
    blank = dict.fromkeys(good)
    found = prepare([{**blank, **ROW, **more}, good], chatml_tokenizer, options)
    assert (found.counts.kept, found.counts.rows) == (1, 2)


def test_a_prompt_is_cut_for_the_longest_of_three_and_all_is_counted(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {"prompt": "a b c d e f g h", "chosen": " one", "rejected": " two", "gold": " x" * 9}
    whole = prepared([row], chatml_tokenizer)[0]
    most = len(whole.prompt) + len(whole.gold) - 2
    options = PrepareOptions(gold=True, max_length=most, truncation="prompt_start")
    found = prepare([row], chatml_tokenizer, options)
    (pair,) = iter_pairs(found)
    assert len(pair.prompt) == len(whole.prompt) - 2
    assert (pair.chosen, pair.gold) == (whole.chosen, whole.gold)
    assert found.counts.cut_tokens["prompt"] == 2
    ends = prepare([row], chatml_tokenizer, PrepareOptions(gold=True, max_length=most))
    (pair,) = iter_pairs(ends)
    assert list(pair.gold) == list(whole.gold[:-2])
    assert (pair.chosen, pair.prompt) == (whole.chosen, whole.prompt)
    account = ends.counts.as_dict()
    assert account["cut_tokens"] == {"prompt": 0, "chosen": 0, "rejected": 0, "gold": 2}
    assert account["tokens"]["gold"] == len(whole.gold) - 2
    assert "gold" in ends.counts.summary()
    with pytest.raises(DataError, match="CP209"):
        prepare(
            [row], chatml_tokenizer, PrepareOptions(gold=True, max_length=most, truncation="drop")
        )


def test_where_tokens_merge_over_the_boundary_the_prompt_ends_before_them_for_all(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Whichever of the three they merge with."""
    sides, moved = (" yes", "a", "to", "b"), 0
    for end in ("Say: ", "Say:", "Say a"):
        for chosen, rejected, gold in permutations(sides, 3):
            row = {"prompt": end, "chosen": chosen, "rejected": rejected, "gold": gold}
            (pair,) = prepared([row], merging_tokenizer)
            (alone,) = prepared([row], merging_tokenizer, PrepareOptions())
            text = merging_tokenizer.decode([*pair.prompt, *pair.gold])
            assert text == f"{end}{gold}</s>"
            whole = merging_tokenizer(end + gold)["input_ids"]
            assert [*pair.prompt, *pair.gold][:-1] == whole
            assert [*pair.prompt, *pair.chosen] == [*alone.prompt, *alone.chosen]
            assert [*pair.prompt, *pair.rejected] == [*alone.prompt, *alone.rejected]
            moved += len(alone.prompt) - len(pair.prompt)
    assert moved


def test_a_stream_gives_the_same_and_is_counted_alike(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{**ROW, "gold": f" one {n}", "weight": 1.0 + n} for n in range(5)]
    eager = prepare(rows, chatml_tokenizer, GOLD)

    def some() -> Any:
        yield from rows

    streamed = prepare(IterableDataset.from_generator(some), chatml_tokenizer, GOLD)
    assert list(iter_pairs(streamed)) == list(iter_pairs(eager))
    assert streamed.counts.as_dict()["digest"] == eager.counts.as_dict()["digest"]
    other = [{**rows[0], "gold": " one!"}, *rows[1:]]
    changed = prepare(other, chatml_tokenizer, GOLD).counts.as_dict()["digest"]
    assert changed != eager.counts.as_dict()["digest"]


def test_a_list_of_rejected_ones_shares_it(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{**ROW, "rejected": [" two", " three"], "gold": " one!"}]
    first, second = prepared(rows, chatml_tokenizer)
    assert first.gold == second.gold
    assert first.weight == second.weight == 0.5


def test_of_several_turns_those_of_others_carry_no_loss(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = [*answer("one"), {"role": "user", "content": "Sure?"}, *answer("yes")]
    row = {"prompt": ASKED, "chosen": answer("one"), "rejected": answer("two"), "gold": turns}
    (found,) = prepared([row], chatml_tokenizer)
    (other,) = prepared([{**row, "chosen": turns}], chatml_tokenizer, PrepareOptions())
    assert found.gold_given == other.chosen_given != ()


def test_prepared_pairs_are_read_as_the_loss_reads_them(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{**ROW, "gold": " one!"}]
    three, two = (
        prepare(rows, chatml_tokenizer, options).pairs for options in (GOLD, PrepareOptions())
    )
    assert as_read(three, gold=True) is three
    assert as_read(two, gold=False) is two
    assert "gold_ids" not in as_read(three, gold=False).column_names
    with pytest.raises(DataError, match=r"CP236.*prepared without"):
        as_read(two, gold=True)


def test_tokens_shows_it(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    raw, encoder = {**ROW, "gold": " one it is"}, TextEncoder(chatml_tokenizer)
    shown = draw_tokens(tokens_of_row(raw, 0, encoder, Limits(gold=True)), name="few")
    assert "gold: " in shown
    assert "gold" not in draw_tokens(tokens_of_row(raw, 0, encoder, Limits()), name="few")
