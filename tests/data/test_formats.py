"""Every shape of row becomes the same row; every broken one says which row, field and code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.formats import check_columns, to_preference_row
from counterpoint.errors import DataError
from counterpoint.preference_row import Message, PreferenceRow


def turn(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


USER, GOOD, BAD = turn("user", "Hi?"), turn("assistant", "Good."), turn("assistant", "Bad.")
SYSTEM = turn("system", "Be brief.")
HUMAN = {"from": "human", "value": "Hi?"}
GPT_GOOD, GPT_BAD = {"from": "gpt", "value": "Good."}, {"from": "gpt", "value": "Bad."}

SAME_ROW = {
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "whole conversations beside a text prompt and leftovers": {
        "prompt": "something else",
        "prompt_id": "a1",
        "messages": [USER, GOOD],
        "score_chosen": 9.0,
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "whole conversations beside their prompt": {
        "prompt": [USER],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "a text prompt and assistant turns": {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
    "a prompt of messages and text": {"prompt": [USER], "chosen": "Good.", "rejected": "Bad."},
    "single messages": {"prompt": USER, "chosen": GOOD, "rejected": BAD},
    "sharegpt": {"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD},
    "sharegpt, lists": {"conversations": [HUMAN], "chosen": [GPT_GOOD], "rejected": [GPT_BAD]},
    "sharegpt with roles": {"conversations": [USER], "chosen": GOOD, "rejected": BAD},
    "openai messages": {"messages": [USER], "chosen": GOOD, "rejected": BAD},
    "alpaca": {"instruction": "Hi?", "input": "", "chosen": "Good.", "rejected": "Bad."},
    "alpaca, both in output": {"instruction": "Hi?", "output": ["Good.", "Bad."]},
    "JSON where no text can stand": {
        "conversations": json.dumps([HUMAN]),
        "chosen": GOOD,
        "rejected": BAD,
    },
    "a literal where no text can stand": {
        "conversations": repr([HUMAN]),
        "chosen": GOOD,
        "rejected": BAD,
    },
    "nulls that Arrow adds": {
        "prompt": [{**USER, "tool_calls": None, "name": None}],
        "chosen": [{**GOOD, "tool_calls": None}],
        "rejected": [{**BAD, "tool_calls": None}],
        "conversations": None,
        "system": None,
        "tools": None,
        "chat_template_kwargs": {"enable_thinking": None},
    },
}


@pytest.mark.parametrize("raw", SAME_ROW.values(), ids=SAME_ROW.keys())
def test_every_shape_of_one_conversation_is_the_same_row(raw: dict) -> None:
    assert to_preference_row(raw, 3) == PreferenceRow([USER], [GOOD], [BAD], row=3)


def test_text_stays_as_it_is() -> None:
    raw = {"prompt": "1 + 1 =", "chosen": "  2", "rejected": " 3\n"}
    assert to_preference_row(raw, 0) == PreferenceRow("1 + 1 =", "  2", " 3\n", row=0)


@pytest.mark.parametrize(
    "answer",
    [
        '[{"a": 1}]',
        '{"role": "x"}',
        '{"from": "EUR", "to": "USD", "value": 3}',
        '{"from": "EUR", "value": "3"}',
        json.dumps([GOOD]),
        repr([GOOD]),
    ],
)
@pytest.mark.parametrize("prompt", ["Give me JSON.", [USER]])
def test_text_stays_text_whatever_it_spells(answer: str, prompt: Any) -> None:
    for chosen, rejected in ((answer, "no"), ("yes", answer)):
        read = to_preference_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}, 0)
        said = [s if isinstance(s, str) else s[0]["content"] for s in (read.chosen, read.rejected)]
        assert said == [chosen, rejected]


def test_indentation_may_be_the_whole_preference() -> None:
    row = to_preference_row({"prompt": "def f():\n", "chosen": "  x", "rejected": "    x"}, 0)
    assert (row.chosen, row.rejected) == ("  x", "    x")


# The implicit prompt of text


def test_the_prompt_of_a_transcript_ends_at_its_last_assistant() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant:"
    row = to_preference_row({"chosen": f"{start} 4", "rejected": f"{start} 45"}, 0)
    assert row == PreferenceRow(start, " 4", " 45", row=0)


def test_the_prompt_of_other_text_is_its_shared_beginning_without_a_last_space() -> None:
    row = to_preference_row({"chosen": "The sky is blue.", "rejected": "The sky is green."}, 0)
    assert row == PreferenceRow("The sky is", " blue.", " green.", row=0)


def test_where_one_text_continues_the_other_both_keep_a_character() -> None:
    row = to_preference_row({"chosen": "To be", "rejected": "To be or not"}, 0)
    assert row == PreferenceRow("To b", "e", "e or not", row=0)


WORDS = st.text("ab ", max_size=4)


@given(start=WORDS, good=WORDS, bad=WORDS)
def test_an_implicit_prompt_loses_no_character(start: str, good: str, bad: str) -> None:
    chosen, rejected = f"S{start}{good}x", f"S{start}{bad}y"
    row = to_preference_row({"chosen": chosen, "rejected": rejected}, 0)
    assert f"{row.prompt}{row.chosen}" == chosen
    assert f"{row.prompt}{row.rejected}" == rejected
    assert row.prompt.startswith(f"S{start}".rstrip(" "))


# The implicit prompt of conversations


def test_conversations_that_end_differently_share_all_turns_before() -> None:
    earlier = [SYSTEM, USER, turn("assistant", "Yes?"), turn("user", "2+2?")]
    row = to_preference_row({"chosen": [*earlier, GOOD], "rejected": [*earlier, BAD]}, 0)
    assert row.prompt == earlier


def test_calls_of_tools_belong_to_the_completion_from_where_it_differs() -> None:
    call = turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}])
    result = turn("tool", "42")
    row = to_preference_row({"chosen": [USER, call, result, GOOD], "rejected": [USER, BAD]}, 0)
    assert row.prompt == [USER]
    assert row.chosen == [call, result, GOOD]


def test_a_prompt_may_end_with_the_assistant() -> None:
    begun = turn("assistant", "Well,")
    raw = {"prompt": [USER, begun], "chosen": [GOOD], "rejected": [BAD]}
    assert to_preference_row(raw, 0).prompt == [USER, begun]


# What stands beside


def test_a_system_column_becomes_the_first_turn_of_a_conversation() -> None:
    raw = {
        "system": "Be brief.",
        "conversations": [HUMAN],
        "chosen": GPT_GOOD,
        "rejected": GPT_BAD,
    }
    assert to_preference_row(raw, 0).prompt == [SYSTEM, USER]
    whole = {"system": "Be brief.", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert to_preference_row(whole, 0).prompt == [SYSTEM, USER]
    beside = {**whole, "prompt": [USER]}
    assert to_preference_row(beside, 0).prompt == [SYSTEM, USER]
    stated = {"system": "Be long.", "prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}
    assert to_preference_row(stated, 0).prompt == [SYSTEM, USER]


def test_alpaca_history_and_input_become_turns() -> None:
    raw = {
        "system": "Be brief.",
        "history": [["Hi?", "Good."]],
        "instruction": "Add:",
        "input": "2+2",
        "chosen": "4",
        "rejected": "5",
    }
    asked = turn("user", "Add:\n2+2")
    assert to_preference_row(raw, 0).prompt == [SYSTEM, USER, GOOD, asked]


def test_sharegpt_function_calls_and_observations_get_their_roles() -> None:
    raw = {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "42"},
        ],
        "chosen": GPT_GOOD,
        "rejected": GPT_BAD,
        "tools": '[{"name": "f"}]',
    }
    row = to_preference_row(raw, 0)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert row.prompt == [USER, turn("assistant", "", tool_calls=[call]), turn("tool", "42")]
    assert row.tools == [{"name": "f"}]


def test_tools_and_template_arguments_are_read_from_objects_and_json() -> None:
    base = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    schema = {"type": "function", "function": {"name": "f"}}
    for tools, kwargs in (
        ([{**schema, "strict": None}], {"thinking": True}),
        (json.dumps([schema]), '{"thinking": true}'),
    ):
        row = to_preference_row({**base, "tools": tools, "chat_template_kwargs": kwargs}, 0)
        assert row.tools == [schema]
        assert row.template_kwargs == {"thinking": True}
    for nothing in (None, "", [], "[]"):
        assert to_preference_row({**base, "tools": nothing}, 0).tools is None


def test_weight_and_margin_are_kept() -> None:
    raw = {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 2, "margin": -0.5}
    row = to_preference_row(raw, 0)
    assert (row.weight, row.margin) == (2.0, -0.5)


# What is refused

TEXT = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}

REFUSED = {
    "no chosen": ({"prompt": "a", "rejected": "c"}, "CP201", "chosen"),
    "null chosen": ({**TEXT, "chosen": None}, "CP202", "chosen"),
    "null prompt": ({**TEXT, "prompt": None}, "CP206", "Give a column prompt"),
    "a system turn that is no text": ({**CHAT, "system": [SYSTEM]}, "CP202", "system"),
    "an instruction that is no text": (
        {"instruction": [USER], "output": ["b", "c"]},
        "CP202",
        "instruction",
    ),
    "an input that is no text": (
        {"instruction": "a", "input": 5, "output": ["b", "c"]},
        "CP202",
        "input",
    ),
    "number": ({**TEXT, "rejected": 5}, "CP202", "rejected"),
    "number among turns": ({**CHAT, "chosen": [5]}, "CP202", "chosen[0]"),
    "no turn": ({**CHAT, "chosen": []}, "CP202", "chosen"),
    "no role": ({**CHAT, "chosen": [{"content": "x"}]}, "CP202", "chosen[0]"),
    "no content": ({**CHAT, "chosen": [{"role": "assistant"}]}, "CP202", "chosen[0]"),
    "content of a number": ({**CHAT, "chosen": [turn("assistant", 1)]}, "CP202", "chosen[0]"),
    "image": (
        {**CHAT, "prompt": [turn("user", [{"type": "image"}])]},
        "CP219",
        "prompt",
    ),
    "text beside messages": ({**CHAT, "rejected": "x"}, "CP202", "rejected"),
    "tools that are not JSON": ({**CHAT, "tools": "{"}, "CP202", "tools"),
    "tools that are no list": ({**CHAT, "tools": "3"}, "CP202", "tools"),
    "template arguments that are a list": (
        {**CHAT, "chat_template_kwargs": [1]},
        "CP202",
        "chat_template_kwargs",
    ),
    "three answers": ({"instruction": "a", "output": ["b", "c", "d"]}, "CP202", "output"),
    "empty": ({**TEXT, "chosen": ""}, "CP203", "chosen"),
    "blank": ({**TEXT, "rejected": " \n\t"}, "CP203", "rejected"),
    "both blank": ({**TEXT, "chosen": "", "rejected": ""}, "CP203", "chosen"),
    "blank turn": ({**CHAT, "chosen": [turn("assistant", " ")]}, "CP203", "chosen"),
    "blank after the transcript": (
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "CP203",
        "chosen",
    ),
    "equal": ({**TEXT, "rejected": "b"}, "CP205", "chosen"),
    "equal turns": ({**CHAT, "rejected": [GOOD]}, "CP205", "chosen"),
    "equal but for nulls": ({**CHAT, "rejected": [{**GOOD, "name": None}]}, "CP205", "chosen"),
    "other transcript": (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: c",
            "rejected": "\n\nHuman: b\n\nAssistant: d",
        },
        "CP206",
        "rejected",
    ),
    "nothing shared": ({"chosen": "a", "rejected": "b"}, "CP206", "chosen"),
    "no turn shared": ({"chosen": [GOOD, GOOD], "rejected": [BAD, GOOD]}, "CP206", "chosen"),
    "other question": (
        {"chosen": [USER, GOOD], "rejected": [turn("user", "Ho?"), BAD]},
        "CP206",
        "chosen",
    ),
    "prompt that is not the conversation's": (
        {"prompt": [SYSTEM], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "CP206",
        "chosen",
    ),
    "ends with the user": (
        {"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]},
        "CP207",
        "chosen",
    ),
    "completion of the user": ({**CHAT, "chosen": [turn("tool", "x"), GOOD]}, "CP207", "chosen"),
    "weight that is not a number": ({**TEXT, "weight": float("nan")}, "CP212", "weight"),
    "negative weight": ({**TEXT, "weight": -1.0}, "CP212", "weight"),
    "infinite margin": ({**TEXT, "margin": float("inf")}, "CP212", "margin"),
    "margin that is not a number": ({**TEXT, "margin": float("nan")}, "CP212", "margin"),
    "weight in words": ({**TEXT, "weight": "heavy"}, "CP212", "weight"),
    "true weight": ({**TEXT, "weight": True}, "CP212", "weight"),
}


@pytest.mark.parametrize(("raw", "code", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_row_names_itself_its_field_and_a_code(raw: dict, code: str, field: str) -> None:
    with pytest.raises(DataError) as caught:
        to_preference_row(raw, 17)
    assert caught.value.code == code
    assert "row 17" in caught.value.message
    assert field in caught.value.message


def test_a_column_that_looks_like_the_prompt_is_not_passed_over() -> None:
    raw = {"question": "Sky?", "chosen": "The sky is blue.", "rejected": "The sky is red."}
    with pytest.raises(DataError, match=r"CP201.*question") as caught:
        to_preference_row(raw, 0)
    assert "Rename it to prompt" in caught.value.message


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        (["prompt", "response_win", "response_lose"], "rename response_win to chosen"),
        (["prompt", "completion", "label"], "unpaired"),
        (["source", "candidates"], "candidates"),
        ([], "it has none"),
    ],
)
def test_missing_columns_are_refused_before_any_row(columns: list[str], advice: str) -> None:
    with pytest.raises(DataError, match=r"CP201") as caught:
        check_columns(columns, name="train.jsonl")
    assert caught.value.message.startswith("train.jsonl has no column chosen")
    assert advice in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", None, 3]),
        "content": JSON,
        "from": st.sampled_from(["human", "gpt", "function_call", 1]),
        "value": st.sampled_from(["x", "", '{"name": "f"}', "[]", "3", "{"]) | JSON,
        "tool_calls": JSON,
    },
)
HH = "\n\nHuman: a\n\nAssistant:"
CELL = JSON | TURN | st.lists(TURN, max_size=3) | st.sampled_from(["a", "ab", HH, HH + " b"])
OPTIONAL = ("prompt", "conversations", "messages", "instruction", "input", "output", "history")
OPTIONAL += ("system", "tools", "chat_template_kwargs", "weight", "margin")
CELLS = st.fixed_dictionaries(
    {"chosen": CELL, "rejected": CELL}, optional=dict.fromkeys(OPTIONAL, CELL)
)


@given(CELLS)
def test_any_cells_make_a_row_or_a_coded_error(raw: dict) -> None:
    row, said = read_or_refused(raw)
    if row is None:
        assert "row 5" in said
    else:
        assert row.chosen != row.rejected
        assert isinstance(row.prompt, str) == isinstance(row.chosen, str)


def read_or_refused(raw: dict) -> tuple[PreferenceRow | None, str]:
    try:
        return to_preference_row(raw, 5), ""
    except DataError as error:
        return None, error.message


@pytest.mark.parametrize(
    "sides",
    [
        {"prompt": "Hi", "chosen": " yes", "rejected": " no"},
        {
            "prompt": "Hi",
            "chosen": [{"role": "assistant", "content": " yes"}],
            "rejected": [{"role": "assistant", "content": " no"}],
        },
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": " yes",
            "rejected": " no",
        },
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": " yes"}],
            "rejected": [{"role": "assistant", "content": " no"}],
        },
        {"instruction": "Hi", "chosen": " yes", "rejected": " no"},
        {"instruction": "Hi", "output": [" yes", " no"]},
    ],
)
def test_a_system_column_is_the_first_turn_in_every_shape(sides) -> None:
    found = to_preference_row({"system": "ZEBRA", **sides}, 0)
    assert found.prompt == [
        {"role": "system", "content": "ZEBRA"},
        {"role": "user", "content": "Hi"},
    ]
    assert found.chosen == [{"role": "assistant", "content": " yes"}]
    assert found.rejected == [{"role": "assistant", "content": " no"}]


def test_a_blank_system_is_no_turn_but_the_row_is_written_as_its_neighbours() -> None:
    found = to_preference_row(
        {"system": "", "prompt": "Hi", "chosen": " yes", "rejected": " no"}, 0
    )
    assert found.prompt == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "column", [{"tools": [{"name": "f"}]}, {"chat_template_kwargs": {"thinking": True}}]
)
def test_what_only_a_template_can_show_is_refused_beside_text(column) -> None:
    row = {"prompt": "Hi", "chosen": " yes", "rejected": " no"}
    with pytest.raises(DataError, match=f"CP202.*{next(iter(column))}"):
        to_preference_row(row | column, 3)


@pytest.mark.parametrize("name", ["image", "images", "audio", "video"])
@pytest.mark.parametrize("value", ["a.png", [b"png"], {"path": "a.png"}, ["a.png", None]])
def test_what_a_text_model_cannot_see_is_refused(name, value) -> None:
    row = {"prompt": "Hi", "chosen": " yes", "rejected": " no"}
    with pytest.raises(DataError, match=f"CP219.*row 3.*{name}|CP219.*{name}"):
        to_preference_row(row | {name: value}, 3)
    for empty in (None, [], "", [None]):
        assert to_preference_row(row | {name: empty}, 3).prompt == "Hi"
