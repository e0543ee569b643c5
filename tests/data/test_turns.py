"""Of a completion of several turns only the assistant's own words carry loss, counted in tokens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from counterpoint import DataError
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.row_tokens import Piece, RowTokens, tokens_of_row
from counterpoint.data.sources import load
from counterpoint.data.token_view import draw_tokens
from counterpoint.data.truncate import spans_within
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.rows import carries_loss
from counterpoint.records import TokenPair
from counterpoint.smoke.rows import shortened
from tests.templates_on_the_spot import GEMMA, LLAMA3, MISTRAL, QWEN3, R1, with_template
from tests.tokenizers_on_the_spot import CHATML

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "Add 2 and 3."}]


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def hears(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


CALLING = [
    says("Let me see.", tool_calls=[CALL]),
    hears("FIVE apples", "tool"),
    says("It is 5."),
    hears("And FOUR more?"),
    says("It is 9."),
]
TALKING = [says("It is 6."), hears("NO."), says("It is 7.")]
ROW: dict[str, Any] = {"prompt": ASKED, "chosen": CALLING, "rejected": TALKING, "tools": TOOLS}

PHI = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{%- else %}{{ eos_token }}{%- endif %}"
)
"""EOS ends a conversation, and another mark a turn."""

HARMONY = (
    "{%- for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{{- '<return>' if loop.last and not add_generation_prompt else '<end>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<assistant>' }}{%- endif %}"
)
"""A last turn ends otherwise than the same turn with others behind it, and neither with EOS."""

MARKED = (
    "{%- for m in messages %}{{ '<' + m.role + '>' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{- '<return>' if loop.last and not add_generation_prompt else '<end>' }}{% endgeneration %}"
    "{%- else %}{{ m.content + '<end>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<assistant>' }}{%- endif %}"
)
"""The same, marked."""

EOM = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- if m.tool_calls %}{{ m.tool_calls | tojson }}{{ '<call>' if loop.last else '<called>' }}"
    "{%- else %}{{ '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
"""A turn that calls tools does not end with EOS, and is written otherwise where it is the last."""


def shown(raw: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **limits: Any) -> RowTokens:
    return tokens_of_row(raw, 0, TextEncoder(tokenizer), Limits(**limits))


def trained(pieces: tuple[Piece, ...]) -> str:
    return "".join(piece.text for piece in pieces if piece.loss)


def read(pieces: tuple[Piece, ...]) -> str:
    return "".join(piece.text for piece in pieces if not piece.loss)


def one(raw: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **options: Any) -> TokenPair:
    return next(iter(iter_pairs(prepare([raw], tokenizer, PrepareOptions(**options)))))


def test_no_token_of_a_tool_or_user_carries_loss_and_all_of_the_assistant_s_do(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = shown(ROW, chatml_tokenizer)
    call = json.dumps([CALL])
    first = f"Let me see.{call}<|im_end|>"
    assert trained(found.chosen) == f"{first}It is 5.<|im_end|>It is 9.<|im_end|>"
    assert trained(found.rejected) == "It is 6.<|im_end|>It is 7.<|im_end|>"
    assert read(found.chosen) == (
        "\n<|im_start|>tool\nFIVE apples<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\nAnd FOUR more?<|im_end|>\n<|im_start|>assistant\n"
    )
    pair = one(ROW, chatml_tokenizer)
    counts = [sum(piece.loss for piece in side) for side in (found.chosen, found.rejected)]
    for layout in (PADDED, SHARED):
        assert layout.collate([pair]).target_counts.tolist() == counts


@pytest.mark.parametrize(
    ("turns", "chosen", "rejected"),
    [
        ("assistant", None, "It is 6.<|im_end|>It is 7.<|im_end|>"),
        ("last", "It is 9.<|im_end|>", "It is 7.<|im_end|>"),
    ],
)
def test_the_option_says_which_turns(
    turns: str, chosen: str | None, rejected: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = shown(ROW, chatml_tokenizer, train_turns=turns)
    assert trained(found.rejected) == rejected
    assert chosen is None or trained(found.chosen) == chosen


def test_all_turns_are_trained_as_they_were_before_there_was_a_choice(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = shown(ROW, chatml_tokenizer, train_turns="all")
    assert all(piece.loss for piece in (*found.chosen, *found.rejected))
    pair = one(ROW, chatml_tokenizer, train_turns="all")
    assert (pair.chosen_given, pair.rejected_given) == ((), ())


@pytest.mark.parametrize("turns", ["assistant", "last"])
def test_a_completion_of_one_turn_is_what_it_always_was(
    turns: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {"prompt": ASKED, "chosen": [says("It is 5.")], "rejected": [says("It is 6.")]}
    some = prepare([row], chatml_tokenizer, PrepareOptions(train_turns=turns))
    every = prepare([row], chatml_tokenizer, PrepareOptions(train_turns="all"))
    assert "chosen_given" not in some.pairs.column_names
    assert some.counts.digest == every.counts.digest
    assert some.counts.given_rows == 0


THOUGHTS = "reasoning_content"
SPOKEN = "Let me see.{0}It is 5.{0}It is 9.{0}"


@pytest.mark.parametrize(
    ("template", "first", "chosen"),
    [
        (GEMMA, says("Let me see."), SPOKEN.format("<|im_end|>")),
        (R1, says("Let me see."), SPOKEN.format("<|im_end|>")),
        (MARKED, says("Let me see."), "Let me see.<end>It is 5.<end>It is 9.<return><|im_end|>"),
        (PHI, says("Let me see."), SPOKEN.format("<|end|>\n") + "<|im_end|>"),
        (
            LLAMA3,
            says("", tool_calls=[CALL]),
            '{"name": "add", "arguments": {"a": 2, "b": 3}}<|im_end|>It is 5.<|im_end|>'
            "It is 9.<|im_end|>",
        ),
        (
            QWEN3,  # thoughts of turns before the last user's are written nowhere
            says("Let me see.", tool_calls=[CALL]),
            'Let me see.\n<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}<|im_end|>'
            "It is 5.<|im_end|><think>\nso\n</think>\n\nIt is 9.<|im_end|>",
        ),
    ],
)
def test_the_turns_are_found_in_the_templates_of_many_models(
    template: str, first: dict[str, Any], chosen: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = with_template(chatml_tokenizer, template)
    last = {**CALLING[-1], THOUGHTS: "so"} if template == QWEN3 else CALLING[-1]
    row = {"prompt": ASKED, "chosen": [first, *CALLING[1:-1], last], "rejected": TALKING}
    found = shown(row, tokenizer)
    assert trained(found.chosen) == chosen
    assert "apples" in read(found.chosen)


def test_a_tokenizer_with_bos_and_no_generation_prompt(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {"prompt": ASKED, "chosen": TALKING, "rejected": [says("It is 8.")]}
    found = shown(row, llama_tokenizer)
    # its template writes a space before what the assistant says
    assert trained(found.chosen).split("</s>") == [" It is 6.", " It is 7.", ""]
    assert "NO" in read(found.chosen)
    assert all(piece.loss for piece in found.rejected)


def test_a_turn_that_the_prompt_begins_is_continued_and_followed(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {"prompt": [*ASKED, says("It is")], "chosen": TALKING, "rejected": CALLING[2:]}
    row["chosen"] = [says(" 6."), *TALKING[1:]]
    row["rejected"] = [says(" 5."), *CALLING[3:]]
    found = shown(row, chatml_tokenizer)
    assert trained(found.chosen) == " 6.<|im_end|>It is 7.<|im_end|>"
    assert trained(found.rejected) == " 5.<|im_end|>It is 9.<|im_end|>"


@pytest.mark.parametrize("template", [HARMONY, EOM], ids=["harmony", "eom"])
def test_turns_that_cannot_be_told_apart_are_refused_and_never_guessed(
    template: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = with_template(chatml_tokenizer, template)
    first = CALLING[0] if template == EOM else says("Let me see.")
    row = {"prompt": ASKED, "chosen": [first, *CALLING[1:]], "rejected": [says("It is 8.")]}
    with pytest.raises(DataError, match=r"^CP248 row 0, field chosen: .*\{% generation %\}.*all"):
        shown(row, tokenizer)
    assert all(piece.loss for piece in shown(row, tokenizer, train_turns="all").chosen)


def test_a_template_that_refuses_a_conversation_cut_off_is_asked_about_the_whole(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    refusing = "{%- if messages | length == 2 %}{{ raise_exception('two') }}{%- endif %}"
    tokenizer = with_template(chatml_tokenizer, refusing + CHATML)
    assert shown(ROW, tokenizer) == shown(ROW, chatml_tokenizer)


def test_a_system_turn_that_moves_with_the_last_user_is_refused(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(chatml_tokenizer, MISTRAL)
    row = {"prompt": ASKED, "chosen": TALKING, "rejected": [says("It is 8.")]}
    assert trained(shown(row, tokenizer).chosen) == " It is 6. <|im_end|> It is 7. <|im_end|>"
    with pytest.raises(DataError, match=r"^CP248"):
        shown({**row, "system": "Be brief."}, tokenizer)


def test_what_cutting_leaves_of_other_s_words_is_no_completion(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = shown(ROW, chatml_tokenizer, train_turns="last")
    kept = len(whole.chosen) - 8
    with pytest.raises(
        DataError, match=r"^CP247 row 0, field chosen: none of the .* its last turn"
    ):
        shown(ROW, chatml_tokenizer, train_turns="last", max_completion_length=kept)
    # of all the assistant's turns enough is left, and the spans end where the completion does
    pair = one(ROW, chatml_tokenizer, max_completion_length=kept)
    assert len(pair.chosen) == kept == pair.chosen_given[-1]


def test_the_account_says_how_many_tokens_carry_no_loss(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = {"prompt": ASKED, "chosen": [says("It is 5.")], "rejected": [says("It is 6.")]}
    found = shown(ROW, chatml_tokenizer)
    given = [sum(not p.loss for p in side) for side in (found.chosen, found.rejected)]
    counts = prepare([ROW, plain], chatml_tokenizer).counts
    assert counts.given_rows == 1
    assert dict(counts.given_tokens) == dict(zip(("chosen", "rejected"), given, strict=True))
    assert f"{given[0]} chosen and {given[1]} rejected tokens" in counts.summary()
    stream = prepare(Dataset.from_list([ROW, plain]).to_iterable_dataset(), chatml_tokenizer)
    pairs = list(iter_pairs(stream))
    assert stream.counts.given_tokens == counts.given_tokens
    assert stream.counts.digest == counts.digest
    assert pairs[0] == one(ROW, chatml_tokenizer)


def test_the_digest_knows_which_tokens_carry_loss(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    digests = {
        turns: prepare([ROW], chatml_tokenizer, PrepareOptions(train_turns=turns)).counts.digest
        for turns in ("all", "assistant", "last")
    }
    assert len({digest.hexdigest() for digest in digests.values()}) == 3


def test_the_drawing_marks_what_is_only_read(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    text = draw_tokens(shown(ROW, chatml_tokenizer), name="t", width=72)
    lines = text.splitlines()
    chosen = next(n for n, line in enumerate(lines) if line.startswith("chosen:"))
    marks = [line[0] for line in lines[chosen + 1 :] if line][:7]
    assert set(marks) == {"+", "."}


ROLES = st.lists(st.sampled_from(["user", "tool"]), min_size=1, max_size=3)


@settings(max_examples=40)
@given(
    others=ROLES,
    words=st.lists(st.text("αβ γ", min_size=1, max_size=6), min_size=9, max_size=9),
    template=st.sampled_from([CHATML, GEMMA, QWEN3, R1]),
    thinks=st.booleans(),
    limit=st.integers(20, 400),
)
def test_every_conversation_trains_the_assistant_s_letters_and_no_others(
    others: list[str],
    words: list[str],
    template: str,
    thinks: bool,
    limit: int,
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Greek letters are the assistant's, Cyrillic ones those of tools and users."""
    tokenizer = with_template(chatml_tokenizer, template)
    side = [says(f"α{words[0]}β")]
    for number, role in enumerate(others):
        side += [hears(f"Ж{number}Щ", role), says(f"δ{words[number + 1]}ε")]
    if thinks and template == QWEN3:  # elsewhere they are left out, and such a row is refused
        side[-1][THOUGHTS] = "ω"
    row = {"prompt": ASKED, "chosen": side, "rejected": [says("αα")]}
    whole = shown(row, tokenizer)
    assert not any(letter in trained(whole.chosen) for letter in "ЖЩ")
    assert not any(letter in read(whole.chosen) for letter in "αβδε")
    # cut anywhere, the same tokens carry loss as far as they are left
    cut = shown(row, tokenizer, max_completion_length=min(limit, len(whole.chosen)))
    kept = [piece.loss for piece in cut.chosen if not piece.cut]
    assert kept == [piece.loss for piece in whole.chosen][: len(kept)]


@given(
    spans=st.lists(st.integers(0, 20), unique=True, max_size=6).map(sorted),
    start=st.integers(0, 20),
    size=st.integers(0, 20),
)
def test_spans_of_a_stretch_are_those_of_the_whole(spans: list[int], start: int, size: int) -> None:
    spans = spans[: len(spans) // 2 * 2]
    end = min(start + size, 21)
    kept = carries_loss(21, spans)[start:end]
    assert (carries_loss(max(end - start, 0), spans_within(spans, start, end)) == kept).all()


def test_a_smoke_run_s_short_pairs_keep_their_spans() -> None:
    given = TokenPair(
        prompt=[1, 2],
        chosen=[*range(5, 25)],
        rejected=[5, 6, *range(40, 58)],
        row=0,
        chosen_given=(4, 7),
        rejected_given=(1, 19),
    )
    short = shortened(given)
    trains = carries_loss(len(short.chosen), short.chosen_given)
    left = [token for token, loss in zip(short.chosen, trains, strict=True) if not loss]
    assert left == [token for token in (9, 10, 11) if token in short.chosen] != []
    assert carries_loss(len(short.rejected), short.rejected_given).any()
    assert shortened(replace(given, chosen_given=(), rejected_given=())).chosen_given == ()


def as_messages(text: str) -> list[dict[str, Any]]:
    """A transcript of hh-rlhf as messages."""
    roles = {"Human": "user", "Assistant": "assistant"}
    _, *parts = re.split(r"\n\n(Human|Assistant):", text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[name], "content": said.strip()} for name, said in turns]


def test_real_conversations_train_less_only_where_others_speak_in_a_completion(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    raw = load(real_data / "hh-rlhf-harmless-base-test.jsonl.gz").select(range(200))
    talks = [{side: as_messages(row[side]) for side in ("chosen", "rejected")} for row in raw]
    # all that follows the first question is the completion
    rows = [
        {"prompt": row["chosen"][:1], "chosen": row["chosen"][1:], "rejected": row["rejected"][1:]}
        for row in talks
    ]
    some, every = (
        prepare(
            rows,
            chatml_tokenizer,
            PrepareOptions(train_turns=turns, invalid_rows="drop", max_length=10**6),
        )
        for turns in ("assistant", "all")
    )
    pairs = list(zip(iter_pairs(some), iter_pairs(every), strict=True))
    spoken = 0
    for mine, theirs in pairs:
        assert replace(mine, chosen_given=(), rejected_given=()) == theirs
        for side in ("chosen", "rejected"):
            turns, ids, given = (
                rows[mine.row][side],
                getattr(mine, side),
                getattr(mine, f"{side}_given"),
            )
            assert len(given) == 2 * (len(turns) // 2)
            spoken += bool(given)
            trains = carries_loss(len(ids), given)
            said = [token for token, loss in zip(ids, trains, strict=True) if loss]
            assert chatml_tokenizer.decode(said) == "".join(
                f"{turn['content']}<|im_end|>" for turn in turns[::2]
            )
    assert len(pairs) > 150
    assert 0 < some.counts.given_rows < len(pairs)
    assert some.counts.given_rows <= spoken
    plain = prepare(raw.select(range(80)), chatml_tokenizer)
    assert plain.counts.given_rows == 0  # a transcript is text, in which nobody has turns
