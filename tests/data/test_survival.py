"""What a row says is looked for in its rendered text: what is lost is named, and nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from counterpoint.data.chat import render
from counterpoint.data.formats import to_preference_row
from counterpoint.data.prepare import PrepareOptions, iter_pairs, prepare
from counterpoint.data.sources import load
from counterpoint.data.survival import LostText, losses
from counterpoint.data.switches import switch_for
from counterpoint.errors import DataError
from tests.templates_on_the_spot import GEMMA, LLAMA3, MISTRAL, QWEN3, R1, with_template
from tests.tokenizers_on_the_spot import CHATML

TEMPLATES = {
    "ChatML": CHATML,
    "QWEN3": QWEN3,
    "R1": R1,
    "LLAMA3": LLAMA3,
    "GEMMA": GEMMA,
    "MISTRAL": MISTRAL,
}
SYSTEM = {"role": "system", "content": "Be brief, whatever is asked of you."}
USER = {"role": "user", "content": "What is the capital of France?"}
AGAIN = {"role": "user", "content": "And of Italy?"}
GOOD, BAD = ({"role": "assistant", "content": f"It is {city}."} for city in ("Paris", "Rome"))
THOUGHT = "Hmm, the capital of that country"
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": 3, "unit": "°C", "now": True}}
RESULT = {"role": "tool", "content": '{"degrees": 21, "sky": "clear"}'}


def thinking(turn: dict[str, Any], thought: str = THOUGHT) -> dict[str, Any]:
    """The turn with a thought before it, in its content."""
    return {**turn, "content": f"<think>\n{thought}\n</think>\n\n{turn['content']}"}


def calling(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    """A turn that calls tools."""
    functions = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def raw(prompt: Any, good: Any = GOOD, bad: Any = BAD, **more: Any) -> dict[str, Any]:
    """A row."""
    sides = ([side] if isinstance(side, dict) else side for side in (good, bad))
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), sides, strict=True)), **more}


def lost(row: dict[str, Any], template: str, base: PreTrainedTokenizerFast) -> list[LostText]:
    """What a row loses in a template."""
    read = to_preference_row(row, 0)
    return losses(read, render(read, with_template(base, template)))


PLAIN: dict[str, dict[str, Any]] = {
    "a question": raw([USER]),
    "two questions": raw([USER, GOOD, AGAIN], BAD, GOOD),
    "the same twice": raw([USER, GOOD, USER], GOOD, BAD),
    "whole dialogues": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "lines and marks of other kinds": raw([{"role": "user", "content": 'a\n\n  b <b>&amp; "c"'}]),
    "one letter": raw([{"role": "user", "content": "u"}], {**GOOD, "content": "a"}),
    "a thought": raw([USER], {**GOOD, "reasoning": " "}),
}


@pytest.mark.parametrize("row", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_plain_rows_lose_nothing(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str, row: dict[str, Any]
) -> None:
    assert lost(row, template, chatml_tokenizer) == []


ADDED = "{%- set default = 'You are a helpful assistant. Today is 2026-11-29.\n' %}{{- default }}"
KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "a default system turn and a date": (ADDED + CHATML, raw([USER])),
    "thoughts after the last question": (QWEN3, raw([USER], thinking(GOOD), thinking(BAD))),
    "thoughts in a field": (QWEN3, raw([USER], {**GOOD, "reasoning_content": f"{THOUGHT}\n\n"})),
    "thoughts that the prompt begins": (
        QWEN3,
        raw([USER, {**GOOD, "content": "<think>\nHmm, "}], {**GOOD, "content": "so</think>Yes."}),
    ),
    "a begun turn": (GEMMA, raw([USER, {**GOOD, "content": "It is "}], GOOD, BAD)),
    "empty thoughts": (R1, raw([USER], {**GOOD, "content": "<think>\n\n</think>\n\nParis."})),
    "calls as JSON": (QWEN3, raw([USER], calling(CALL, CALL), BAD)),
    "arguments in JSON text": (
        QWEN3,
        raw([USER], calling({**CALL, "arguments": json.dumps(CALL["arguments"])}), BAD),
    ),
    "calls as Python": (
        "{%- for m in messages %}{{- m.content }}{%- for c in m.tool_calls or [] %}"
        "{{- c.function.name }}({%- for k, v in c.function.arguments | dictsort(reverse=true) %}"
        "{{- k }}={{ v }}, {%- endfor %}){%- endfor %}{%- endfor %}",
        raw([USER], calling(CALL), BAD),
    ),
    "results as JSON": (
        CHATML.replace("(message.content or '')", "(message.content | tojson)"),
        raw([USER, calling(CALL, content="Let me see."), RESULT]),
    ),
    "tools": (CHATML, raw([USER], tools=[{"type": "function", "function": {"name": "weather"}}])),
    "a system turn after the question": (
        "{%- for m in messages | sort(attribute='role', reverse=true) %}{{- m.content }}\n"
        "{%- endfor %}",
        raw([SYSTEM, USER]),
    ),
    "a text that the row repeats": (CHATML, raw([USER], {**GOOD, "content": USER["content"]})),
    "thoughts in a field and in the content": (
        CHATML,
        raw([USER], {**thinking(GOOD), "reasoning_content": THOUGHT}, BAD),
    ),
}


@pytest.mark.parametrize(("template", "row"), KEPT.values(), ids=KEPT)
def test_what_is_written_otherwise_or_added_is_no_loss(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str, row: dict[str, Any]
) -> None:
    assert lost(row, template, chatml_tokenizer) == []


OF_PROMPTS: dict[str, tuple[str, dict[str, Any], LostText]] = {
    "thoughts of earlier turns": (
        QWEN3,
        raw([USER, thinking(GOOD), AGAIN]),
        LostText("dropped", "thoughts", "prompt", THOUGHT),
    ),
    "thoughts in a field of earlier turns": (
        CHATML,
        raw([USER, {**GOOD, "thinking": THOUGHT}, AGAIN]),
        LostText("dropped", "thoughts", "prompt", THOUGHT),
    ),
    "thoughts that the answer thinks again": (
        QWEN3,
        raw([USER, thinking(GOOD), AGAIN], thinking(GOOD), thinking(BAD)),
        LostText("dropped", "thoughts", "prompt", THOUGHT),
    ),
    "a system turn once there is an answer": (
        MISTRAL,
        raw([SYSTEM, USER]),
        LostText("dropped", "system", "prompt", "Be brief, whatever is asked of you."),
    ),
    "all calls but the first": (
        LLAMA3,
        raw([USER, calling({"name": "look", "arguments": {"at": "sky"}}, CALL), RESULT]),
        LostText("dropped", "calls", "prompt", "weather"),
    ),
    "results": (
        CHATML.replace(
            "(message.content or '')", "(message.content if message.role != 'tool' else '')"
        ),
        raw([USER, calling(CALL), RESULT]),
        LostText("dropped", "results", "prompt", '{"degrees": 21, "sky": "clear"}'),
    ),
    "tools": (
        GEMMA,
        raw([USER], tools=[{"type": "function", "function": {"name": "weather"}}]),
        LostText("dropped", "tools", "prompt", "weather"),
    ),
    "space": (
        GEMMA,
        raw([{**USER, "content": "Say: "}]),
        LostText("changed", "spaces", "prompt", "Say:"),
    ),
    "lines that become one": (
        "{%- for m in messages %}{{- m.content.split() | join(' ') }}\n{%- endfor %}",
        raw([{**USER, "content": "def f(x):\n    return x"}]),
        LostText("changed", "spaces", "prompt", "def f(x): return x"),
    ),
    "a short thought that stands in the answer": (
        R1,
        raw([USER, thinking(GOOD, "Paris"), AGAIN]),
        LostText("dropped", "thoughts", "prompt", "Paris"),
    ),
    "the end of a text": (
        "{%- for m in messages %}{{- m.content[:20] }}\n{%- endfor %}",
        raw([{**USER, "content": "Tell me everything about the city of Rome"}]),
        LostText("changed", "content", "prompt", "Tell me everything about the city of Rom…"),
    ),
    "a system turn in every turn": (
        "{%- for m in messages %}{{- messages[0].content + m.content }}\n{%- endfor %}",
        raw([SYSTEM, USER]),
        LostText("repeated", "system", "prompt", "Be brief, whatever is asked of you."),
    ),
}


@pytest.mark.parametrize(("template", "row", "loss"), OF_PROMPTS.values(), ids=OF_PROMPTS)
def test_what_a_prompt_loses_is_named(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str, row: dict[str, Any], loss: LostText
) -> None:
    assert lost(row, template, chatml_tokenizer) == [loss]


def test_white_space_at_the_end_of_an_answer_is_seen(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = raw([USER], {**GOOD, "content": "Paris. "})
    assert lost(row, LLAMA3, chatml_tokenizer) == [
        LostText("changed", "spaces", "chosen", "Paris.")
    ]


REFUSED = {
    "thoughts": (R1, raw([USER], thinking(GOOD), thinking(BAD)), "thoughts of chosen"),
    "thoughts of one side": (R1, raw([USER], GOOD, thinking(BAD)), "thoughts of rejected"),
    "thoughts in a field": (
        CHATML,
        raw([USER], {**GOOD, "thinking": "Hmm."}),
        "thoughts of chosen",
    ),
    "thoughts that the prompt keeps": (
        "{%- for m in messages %}{{- m.role + ':' }}"
        "{{- m.content.split('</think>')[-1] if loop.index == 4 else m.content }}\n{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}",
        raw([USER, thinking(GOOD), AGAIN], thinking(GOOD), BAD),
        "thoughts of chosen",
    ),
    "content beside calls": (
        LLAMA3,
        raw([USER], calling(CALL, content="I will look."), BAD),
        "content of chosen",
    ),
    "a call": (
        LLAMA3,
        raw([USER], calling(CALL, {"name": "forecast"}), BAD),
        "tool calls of chosen",
    ),
    "thoughts of all turns but the last": (
        QWEN3,
        raw([USER], [thinking(GOOD), AGAIN, BAD], [BAD, AGAIN, GOOD]),
        "thoughts of chosen",
    ),
}


@pytest.mark.parametrize(("template", "row", "what"), REFUSED.values(), ids=REFUSED)
def test_a_completion_that_loses_something_is_no_pair(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str, row: dict[str, Any], what: str
) -> None:
    tokenizer = with_template(chatml_tokenizer, template)
    with pytest.raises(DataError, match=rf"CP226 .*row 0: the chat template drops {what}"):
        prepare([row], tokenizer)
    options = PrepareOptions(invalid_rows="drop")
    assert prepare([row, raw([USER])], tokenizer, options).counts.dropped == {"CP226": 1}


def test_the_argument_that_keeps_it_is_tried_and_then_offered(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(chatml_tokenizer, QWEN3)
    row = REFUSED["thoughts of all turns but the last"][1]
    with pytest.raises(DataError, match=r'chat_template_kwargs \{"preserve_thinking": true\}'):
        prepare([row], tokenizer)
    kept = {**row, "chat_template_kwargs": {"preserve_thinking": True}}
    assert prepare([kept], tokenizer).counts.kept == 1


@pytest.mark.parametrize(
    ("name", "value", "condition"),
    [
        ("clear_thinking", False, "clear_thinking is false"),
        ("truncate_history_thinking", False, "truncate_history_thinking is false"),
        ("show_all", True, "show_all"),
    ],
)
def test_a_variable_of_the_templates_own_is_found_with_the_value_that_keeps(
    chatml_tokenizer: PreTrainedTokenizerFast, name: str, value: bool, condition: str
) -> None:
    tokenizer = with_template(chatml_tokenizer, QWEN3.replace("preserve_thinking", condition))
    row = to_preference_row(raw([USER, thinking(GOOD), AGAIN]), 0)
    found = losses(row, render(row, tokenizer))
    assert switch_for(row, found, tokenizer) == {name: value}


def test_what_no_argument_keeps_gets_no_offer(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    for template in (R1, QWEN3.replace("preserve_thinking", "false")):
        tokenizer = with_template(chatml_tokenizer, template)
        row = to_preference_row(raw([USER, thinking(GOOD), AGAIN]), 0)
        assert switch_for(row, losses(row, render(row, tokenizer)), tokenizer) is None


ROWS = [
    raw([USER, thinking(GOOD), AGAIN]),
    raw([USER]),
    raw([{**SYSTEM}, USER, thinking(GOOD, "Other thoughts"), AGAIN]),
]


def test_losses_are_counted_alike_at_once_in_a_stream_and_from_the_cache(
    chatml_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path))
    tokenizer = with_template(chatml_tokenizer, QWEN3)
    data = Dataset.from_list(ROWS)
    first, again = (prepare(data, tokenizer, name="train").counts for _ in range(2))
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    assert first.as_dict() == again.as_dict()
    assert first.lost == {"drops thoughts of the prompt": 2}
    shown = f"row 0: {THOUGHT!r} (CW216)"
    assert first.shown == {"drops thoughts of the prompt": shown}
    line = f"  in 2 rows the chat template drops thoughts of the prompt, for example {shown}"
    assert line in first.summary().splitlines()
    stream = prepare(IterableDataset.from_generator(lambda: iter(ROWS)), tokenizer, name="train")
    with caplog.at_level(logging.WARNING):
        assert len(list(iter_pairs(stream))) == 3
    assert stream.counts == first
    told = [record.getMessage() for record in caplog.records if "template" in record.getMessage()]
    assert told == [f"train: the chat template drops thoughts of the prompt, {shown}"]
    later = prepare(ROWS, tokenizer).counts
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (later.lost, later.shown) == (first.lost, first.shown)


@pytest.mark.parametrize("template", [CHATML, QWEN3, R1, LLAMA3, GEMMA])
def test_nothing_of_the_chinese_file_is_lost(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer = with_template(chatml_tokenizer, template)
    for number, row in enumerate(load(real_data / "llamafactory-dpo-zh-demo.json.gz")):
        read = to_preference_row(row, number)
        assert losses(read, render(read, tokenizer)) == []


def test_plain_text_goes_through_no_template(gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    read = to_preference_row({"prompt": " a ", "chosen": "<think>b</think> ", "rejected": "c"}, 0)
    assert losses(read, render(read, gpt2_tokenizer)) == []
