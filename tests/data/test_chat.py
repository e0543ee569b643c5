"""Conversations through the tokenizer's own template, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.data.chat import Rendered, render
from counterpoint.errors import DataError
from counterpoint.records import Message, PreferenceRow

USER: Message = {"role": "user", "content": "Hi?"}
GOOD: Message = {"role": "assistant", "content": "Good."}
BAD: Message = {"role": "assistant", "content": "Bad."}


def row(prompt: list[Message], good: Message = GOOD, bad: Message = BAD, **more: Any) -> Any:
    return PreferenceRow(prompt, [good], [bad], row=4, **more)


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_text_is_joined_and_never_templated(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    text = PreferenceRow("a:", " b", " c", row=0)
    assert render(text, chatml_tokenizer) == Rendered("a:", "a: b", "a: c")


def test_the_prompt_ends_where_the_assistant_begins(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    start = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert render(row([USER]), chatml_tokenizer) == Rendered(
        start, f"{start}Good.<|im_end|>\n", f"{start}Bad.<|im_end|>\n"
    )


def test_a_prompt_that_ends_with_the_assistant_is_left_open(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    begun: Message = {"role": "assistant", "content": "Well,"}
    rendered = render(row([USER, begun]), chatml_tokenizer)
    assert rendered.prompt.endswith("<|im_start|>assistant\nWell,")


def test_tools_and_system_reach_the_template(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    rendered = render(row([system, USER], tools=[{"name": "f"}]), chatml_tokenizer)
    assert rendered.prompt.startswith('<|im_start|>tools\n[{"name": "f"}]<|im_end|>')
    assert "<|im_start|>system\nBe brief.<|im_end|>" in rendered.chosen


def test_template_arguments_of_the_row_reach_the_template(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(
        chatml_tokenizer, "{{ mood }}:{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    rendered = render(row([USER], template_kwargs={"mood": "calm"}), tokenizer)
    assert rendered.chosen == "calm:Hi?;Good.;"


def test_messages_without_a_template_are_refused(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"CP208 row 4") as caught:
        render(row([USER]), gpt2_tokenizer)
    assert "chat_template" in caught.value.message


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages[0].content.nothing() }}", "UndefinedError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_says_so_with_the_row(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str, said: str
) -> None:
    with pytest.raises(DataError, match=r"CP213 row 4.*user") as caught:
        render(row([USER]), with_template(chatml_tokenizer, template))
    assert said in caught.value.message


def test_a_role_that_the_template_refuses_is_coded(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    with pytest.raises(DataError, match=r"CP213 row 4.*system, user.*Only user and assistant"):
        render(row([system, USER]), llama_tokenizer)


def test_a_template_that_hides_the_difference_is_refused(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    thought = {**GOOD, "reasoning_content": "Hmm."}
    with pytest.raises(DataError, match=r"CP213 row 4.*same text"):
        render(row([USER], good=thought, bad=GOOD), chatml_tokenizer)


def test_half_a_character_is_refused(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"CP202 row 4 holds '\\ud800'"):
        render(PreferenceRow("a", "b\ud800", "c", row=4), chatml_tokenizer)
