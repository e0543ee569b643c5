"""What frames a prompt stays when the prompt is cut, whatever template wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import Prepared, iter_pairs, prepare
from counterpoint.data.sources import load
from tests.templates_on_the_spot import GEMMA, LLAMA3, MISTRAL, QWEN3, R1, with_template

ZH = "llamafactory-dpo-zh-demo.json.gz"
SYSTEM = {"role": "system", "content": "Be brief."}
WORDS = " ".join(f"word{n}" for n in range(60))
LONG = {"role": "user", "content": WORDS}
ANSWER = {"role": "assistant", "content": "Yes."}
SIDES = {"chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]}

CHAT = "<|im_start|>{}\n"
OPEN = f"<|im_end|>\n{CHAT.format('assistant')}"
FRAMES = {
    None: (f"{CHAT.format('system')}Be brief.<|im_end|>\n{CHAT.format('user')}", OPEN),
    GEMMA: (f"{CHAT.format('system')}Be brief.<|im_end|>\n{CHAT.format('user')}", OPEN),
    QWEN3: (f"{CHAT.format('system')}Be brief.<|im_end|>\n{CHAT.format('user')}", OPEN),
    R1: (f"{CHAT.format('system')}Be brief.<|im_end|>\n{CHAT.format('user')}", OPEN),
    LLAMA3: (
        "<|im_start|>system\n\nBe brief.<|im_end|>\n<|im_start|>user\n\n",
        "<|im_end|>\n<|im_start|>assistant\n\n",
    ),
    MISTRAL: ("[INST] ", "[/INST]"),
}
"""What each template writes before and after the words of a first turn, a system turn before it;
the last one writes system turns only where nothing is answered yet, and so gets none."""


def made(
    tokenizer: PreTrainedTokenizerFast, prompt: Any, policy: str, length: int = 100, **more: Any
) -> tuple[str, Prepared]:
    """The text of the prompt that is left."""
    options = PrepareOptions(max_length=length, truncation=policy)
    prepared = prepare([{"prompt": prompt, **SIDES, **more}], tokenizer, options)
    (pair,) = iter_pairs(prepared)
    return str(tokenizer.decode(pair.prompt)), prepared


@pytest.mark.parametrize("policy", ["prompt_start", "prompt_end"])
@pytest.mark.parametrize("template", FRAMES)
def test_header_system_turn_and_opening_of_the_answer_stay(
    chatml_tokenizer: PreTrainedTokenizerFast, template: str | None, policy: str
) -> None:
    tokenizer = with_template(chatml_tokenizer, template or chatml_tokenizer.chat_template)
    prompt = [LONG] if template == MISTRAL else [SYSTEM, LONG]
    text, prepared = made(tokenizer, prompt, policy)
    before, after = FRAMES[template]
    assert text.startswith(before.rstrip(" "))  # a space may merge with the word after it
    assert text.endswith(after)
    words = text[len(before) : len(text) - len(after)].lstrip()
    assert WORDS.endswith(words) if policy == "prompt_start" else WORDS.startswith(words)
    assert len(words) > 50
    assert prepared.counts.little_rows == 1


def test_a_cut_that_falls_in_an_answer_goes_on_to_the_next_question(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = [LONG, {"role": "assistant", "content": WORDS}, {"role": "user", "content": "And 鱼?"}]
    text, _ = made(chatml_tokenizer, said, "prompt_start")
    assert text == f"{CHAT.format('user')}And 鱼?{OPEN}"
    text, _ = made(chatml_tokenizer, said, "prompt_end", length=400)
    assert text == f"{CHAT.format('user')}{WORDS}{OPEN}"


def test_a_begun_answer_keeps_its_end(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    begun = {"role": "assistant", "content": "The capital is"}
    text, _ = made(chatml_tokenizer, [SYSTEM, LONG, begun], "prompt_start")
    assert text.startswith(FRAMES[None][0])
    assert text.endswith(f"word59{OPEN}The capital is")


def test_parts_of_text_and_tools_are_framed_too(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "text", "text": WORDS}]
    template = chatml_tokenizer.chat_template.replace(
        "(message.content or '')",
        "(message.content if message.content is string else message.content[0].text)",
    )
    tokenizer = with_template(chatml_tokenizer, template)
    prompt = [{**LONG, "content": parts}]
    text, _ = made(tokenizer, prompt, "prompt_start", tools=[{"name": "f"}])
    assert text.startswith(f'{CHAT.format("tools")}[{{"name": "f"}}]<|im_end|>\n<|im_start|>user\n')
    assert text.endswith(f"word59{OPEN}")


@pytest.mark.parametrize(
    "words",
    [
        "{{ m.content[:1] | upper }}{{ m.content }}",
        "{{ m.content.split('word')[:5] }}{{ m.content }}",
    ],
)
def test_a_template_that_looks_at_the_words_is_cut_as_text(
    chatml_tokenizer: PreTrainedTokenizerFast, words: str
) -> None:
    template = f"{{% for m in messages %}}{words};{{% endfor %}}"
    text, _ = made(with_template(chatml_tokenizer, template), [LONG], "prompt_start")
    assert text.endswith("word58 word59;")


def test_plain_text_keeps_its_end(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    options = PrepareOptions(max_length=100, truncation="prompt_start")
    row = {"prompt": f"{WORDS}:", "chosen": " yes" * 200, "rejected": " no"}
    (pair,) = iter_pairs(prepare([row], chatml_tokenizer, options))
    assert (len(pair.prompt), len(pair.chosen)) == (25, 75)
    assert f"{WORDS}:".endswith(str(chatml_tokenizer.decode(pair.prompt)))


def test_no_conversation_of_the_chinese_file_loses_its_question(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = PrepareOptions(max_length=384, truncation="prompt_start")
    prepared = prepare(load(real_data / ZH).select(range(60)), chatml_tokenizer, options)
    whole = prepare(load(real_data / ZH).select(range(60)), chatml_tokenizer, PrepareOptions(99999))
    start = chatml_tokenizer.convert_tokens_to_ids("<|im_start|>")
    end = chatml_tokenizer.encode(OPEN)
    cut = framed = 0
    for pair, before in zip(iter_pairs(prepared), iter_pairs(whole), strict=True):
        assert len(pair.prompt) >= min(len(before.prompt), 90)
        framed += pair.prompt[0] == start
        assert pair.prompt[-len(end) :] == end
        cut += len(pair.prompt) < len(before.prompt)
    # in the others the system turn alone takes more than the prompt may
    assert (cut, framed) == (43, 52)
