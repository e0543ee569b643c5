"""Conversations through the tokenizer's own template, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.data.chat import Rendered, render, render_prompt
from counterpoint.errors import DataError
from counterpoint.preference_row import Message, PreferenceRow
from tests.templates_on_the_spot import GEMMA, MISTRAL, QWEN3, R1, with_template

USER: Message = {"role": "user", "content": "Hi?"}
GOOD: Message = {"role": "assistant", "content": "Good."}
BAD: Message = {"role": "assistant", "content": "Bad."}


def row(prompt: list[Message], good: Message = GOOD, bad: Message = BAD, **more: Any) -> Any:
    return PreferenceRow(prompt, [good], [bad], row=4, **more)


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


# A turn that the prompt begins and the completions continue

BEGUN: Message = {"role": "assistant", "content": "The capital is"}
PARIS: Message = {"role": "assistant", "content": " Paris."}
ROME: Message = {"role": "assistant", "content": " Rome."}


def test_completions_continue_the_turn_that_the_prompt_begins(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    start = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nThe capital is"
    expected = Rendered(start, f"{start} Paris.<|im_end|>\n", f"{start} Rome.<|im_end|>\n")
    assert render(row([USER, BEGUN], PARIS, ROME), chatml_tokenizer) == expected


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [
        (GEMMA, "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
        (R1, "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
        (
            QWEN3,
            "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_end|>\n",
        ),
        (MISTRAL, "[INST] Hi?[/INST] ", " <|im_end|>"),
    ],
)
@pytest.mark.parametrize("space", [("", " "), (" ", "")])
def test_a_turn_is_continued_in_every_kind_of_template(
    chatml_tokenizer: PreTrainedTokenizerFast,
    template: str,
    start: str,
    end: str,
    space: tuple[str, str],
) -> None:
    before, after = space
    begun = {**BEGUN, "content": f"The capital is{before}"}
    good, bad = ({"role": "assistant", "content": f"{after}{city}."} for city in ("Paris", "Rome"))
    tokenizer = with_template(chatml_tokenizer, template)
    rendered = render(row([USER, begun], good, bad), tokenizer)
    assert rendered.chosen == f"{start}The capital is Paris.{end}"
    assert rendered.rejected == f"{start}The capital is Rome.{end}"
    assert rendered.prompt.rstrip() == f"{start}The capital is"


@pytest.mark.parametrize("template", [None, GEMMA, QWEN3, R1])
@pytest.mark.parametrize("content", ["The capital is", "The capital is ", "Well,\n\n"])
def test_an_open_turn_ends_where_transformers_continues_it(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str | None, content: str
) -> None:
    tokenizer = with_template(chatml_tokenizer, template or chatml_tokenizer.chat_template)
    messages = [USER, {**BEGUN, "content": content}]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert render_prompt(row(messages), tokenizer) == theirs


def test_an_empty_turn_is_opened_and_its_header_stays_whole(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(chatml_tokenizer, GEMMA)
    rendered = render(row([USER, {**BEGUN, "content": ""}]), tokenizer)
    assert rendered.prompt == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered.chosen == f"{rendered.prompt}Good.<|im_end|>\n"


def test_a_thought_that_was_begun_survives_a_template_that_leaves_thoughts_out(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    begun = {**BEGUN, "content": "<think>\nOne "}
    good = {**GOOD, "content": "and two.</think>Three."}
    rendered = render(row([USER, begun], good), with_template(chatml_tokenizer, R1))
    start = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n<think>\nOne "
    assert rendered.prompt == start
    assert rendered.chosen == f"{start}and two.</think>Three.<|im_end|>\n"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_field_of_its_own_is_continued_there(
    chatml_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    begun = {"role": "assistant", "content": "", name: "One"}
    good, bad = ({**side, name: " and two."} for side in (GOOD, BAD))
    rendered = render(row([USER, begun], good, bad), with_template(chatml_tokenizer, QWEN3))
    start = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n<think>\nOne"
    assert rendered.prompt == start
    assert rendered.chosen == f"{start} and two.\n</think>\n\nGood.<|im_end|>\n"


def test_an_answer_follows_a_thought_that_is_over(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    begun = {"role": "assistant", "content": "", "reasoning_content": "One."}
    rendered = render(row([USER, begun]), with_template(chatml_tokenizer, QWEN3))
    assert rendered.prompt.endswith("<think>\nOne.\n</think>\n\n")
    assert rendered.chosen == f"{rendered.prompt}Good.<|im_end|>\n"


def test_a_thought_cannot_come_after_what_was_said(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    thought = {**GOOD, "reasoning_content": "Hmm."}
    with pytest.raises(DataError, match=r"CP221 row 4, field chosen: continues the content"):
        render(row([USER, BEGUN], thought), with_template(chatml_tokenizer, QWEN3))


def test_parts_of_text_are_continued_too(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"
    )
    user, begun, good, bad = (
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (
            ("user", "Hi?"),
            ("assistant", "A"),
            ("assistant", "B"),
            ("assistant", "C"),
        )
    )
    rendered = render(row([user, begun], good, bad), with_template(chatml_tokenizer, template))
    assert rendered == Rendered("Hi?|A", "Hi?|AB|", "Hi?|AC|")


def test_a_turn_that_called_tools_is_over_and_another_is_opened(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    rendered = render(row([USER, called]), chatml_tokenizer)
    assert rendered.prompt.endswith('{"name": "f"}}]<|im_end|>\n<|im_start|>assistant\n')
    assert rendered.chosen == f"{rendered.prompt}Good.<|im_end|>\n"


def test_a_turn_that_the_template_does_not_write_cannot_be_continued(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' or loop.index > 2 }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"CP221 row 4: .*leaves out its content"):
        render(row([USER, BEGUN], PARIS, ROME), with_template(chatml_tokenizer, template))


@pytest.mark.parametrize("error", [OSError(12, "no memory"), SystemError("gone")])
def test_an_error_of_the_machine_is_not_the_row_s(
    chatml_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(chatml_tokenizer, "apply_chat_template", fails)
    with pytest.raises(DataError, match=r"CP222 row 4 could not be rendered on this machine"):
        render(row([USER]), chatml_tokenizer)


def test_a_file_that_a_template_asks_for_is_the_template_s_error(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(DataError, match=r"CP213 row 4"):
        render(row([USER]), with_template(chatml_tokenizer, "{% include 'other.jinja' %}"))


def test_a_template_that_calls_itself_without_end_is_stopped(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(DataError, match=r"CP217 row 4: .*calls itself without end"):
        render(row([USER]), with_template(chatml_tokenizer, template))
