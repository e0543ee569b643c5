"""Chat templates that do to messages what those of well-known models do, in a few lines each.

Written for the tests: marks are ChatML's throughout, so that one tokenizer knows them all.
"""

from __future__ import annotations

import copy

from transformers import PreTrainedTokenizerFast

_LOOP = "{%- for m in messages %}"
_OPEN = "{{- '<|im_start|>' + m.role + '\n' }}"
_END = "{{- '<|im_end|>\n' }}{%- endfor %}"
_ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"

GEMMA = _LOOP + _OPEN + "{{- m.content | trim }}" + _END + _ASK
"""Takes white space away around every content."""

MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}"
    "{%- if m.role == 'user' %}"
    "{{- '[INST] ' + (system + '\n\n' if system and loop.last else '') + m.content + '[/INST]' }}"
    "{%- else %}{{- ' ' + m.content.strip() + ' <|im_end|>' }}{%- endif %}{%- endfor %}"
)
"""The system turn stands in the last user's; roles alternate; a space before what ends a turn."""

R1 = (
    _LOOP
    + _OPEN
    + "{%- if m.role == 'assistant' and '</think>' in m.content %}"
    + "{{- m.content.split('</think>')[-1] }}{%- else %}{{- m.content }}{%- endif %}"
    + _END
    + _ASK
)
"""Leaves out what an assistant thought, everywhere."""

QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}" + _LOOP + _OPEN + "{%- if m.role == 'assistant' %}"
    "{%- set content = m.content or '' %}{%- set thought = m.reasoning_content or '' %}"
    "{%- if not thought and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last or preserve_thinking %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}"
    "{{- content }}"
    "{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>' + (call.function or call) | tojson }}"
    "{%- endfor %}"
    "{%- else %}{{- m.content }}{%- endif %}"
    + _END
    + _ASK
    + "{%- if add_generation_prompt and enable_thinking is false %}"
    + "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
)
"""Keeps thoughts after the last user's turn only, unless ``preserve_thinking`` is true."""

LLAMA3 = (
    _LOOP
    + "{{- '<|im_start|>' + m.role + '\n\n' }}"
    + "{%- if m.tool_calls %}{{- m.tool_calls[0].function | tojson }}"
    + "{%- else %}{{- m.content | trim }}{%- endif %}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
"""Takes white space away, and of a turn that calls tools leaves the first call only."""


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with another template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other
