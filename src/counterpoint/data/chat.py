"""Conversations become text through the tokenizer's chat template; text stays as it is.

A template is a stranger's program: what it may take is bounded (``bounds``).

Not here: tokens. Where the prompt ends is decided in token space (``tokenize``), so the three
strings of a row need not be prefixes of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.data.bounds import OutOfTime, bounded_time
from counterpoint.errors import DataError
from counterpoint.records import Message, PreferenceRow

MOST_SECONDS = 10.0
"""Of computing, for one text; an ordinary template takes a millisecond."""

MOST_RENDERED = 2**24
"""Characters of one text."""

MOST_SHOWN = 300
"""Characters of a template's own error."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The three texts of a row.

    Args:
        prompt: the prompt alone, up to where the assistant begins to speak.
        chosen: the prompt followed by the chosen completion.
        rejected: the prompt followed by the rejected completion.
    """

    prompt: str
    chosen: str
    rejected: str


def render(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Write a row as text.

    A prompt that ends with an assistant's turn is left open, as in TRL; any other gets the
    template's generation prompt.

    Args:
        row: text, or messages for the template.
        tokenizer: its ``chat_template`` renders messages; unused for text.

    Returns:
        The prompt alone and with each completion.

    Raises:
        DataError: CP202 for text that is not Unicode; CP208 without a chat template; CP213 if
            the template refuses the row or renders both completions the same; CP217 if it takes
            too long or makes too much of it.
    """
    prompt = render_prompt(row, tokenizer)
    if isinstance(row.prompt, str):
        rendered = Rendered(prompt, f"{prompt}{row.chosen}", f"{prompt}{row.rejected}")
    else:
        rendered = _with_completions(row, row.prompt, prompt, tokenizer)
    _check_unicode(rendered, row.row)
    return rendered


def render_prompt(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt of a row as text, up to where the assistant begins to speak.

    Args:
        row: its completions are not looked at.
        tokenizer: as for ``render``.

    Raises:
        DataError: CP208 without a chat template; CP213 if the template refuses the row.
    """
    if isinstance(row.prompt, str):
        return row.prompt
    if not tokenizer.chat_template:
        raise DataError(
            "CP208",
            f"row {row.row} holds messages, but the tokenizer has no chat template. Set "
            "tokenizer.chat_template, use the model's instruction-tuned tokenizer, or give "
            "prompt, chosen and rejected as text.",
        )
    opened = row.prompt[-1]["role"] == "assistant"
    ending = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
    return _apply(row, row.prompt, tokenizer, **ending)


def _with_completions(
    row: PreferenceRow,
    messages: list[Message],
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Rendered:
    rendered = Rendered(
        prompt,
        _apply(row, [*messages, *row.chosen], tokenizer),
        _apply(row, [*messages, *row.rejected], tokenizer),
    )
    if rendered.chosen == rendered.rejected:
        raise DataError(
            "CP213",
            f"row {row.row}: the chat template renders chosen and rejected as the same text, so "
            "it leaves out what sets them apart. Use a template that shows it.",
        )
    return rendered


def _check_unicode(rendered: Rendered, row: int) -> None:
    """JSON can spell half a surrogate pair; no tokenizer takes one."""
    try:
        f"{rendered.chosen}{rendered.rejected}".encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        text = f"row {row} holds {half}, half of a character. Remove it from the text."
        raise DataError("CP202", text) from error


def _apply(
    row: PreferenceRow, messages: list[Message], tokenizer: PreTrainedTokenizerBase, **ending: bool
) -> str:
    options: dict[str, Any] = {**(row.template_kwargs or {}), **ending}
    try:
        with bounded_time(MOST_SECONDS):
            text = tokenizer.apply_chat_template(
                messages, tools=row.tools, tokenize=False, **options
            )
    except OutOfTime as error:
        raise _cut_short(
            row, f"was not done after {MOST_SECONDS:g} seconds of computing"
        ) from error
    except MemoryError as error:
        raise _cut_short(row, "wants more memory than there should be in a text") from error
    except Exception as error:  # a template is a program of the model's author: anything goes
        roles = ", ".join(str(message["role"]) for message in messages)
        raise DataError(
            "CP213",
            f"row {row.row}: the chat template fails on turns of role {roles}: "
            f"{type(error).__name__}: {_shortened(error)}. Change the row or the template.",
        ) from error
    if len(text) > MOST_RENDERED:
        raise _cut_short(row, f"makes {len(text):,} characters of it")
    return str(text)


def _shortened(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _cut_short(row: PreferenceRow, what: str) -> DataError:
    return DataError(
        "CP217",
        f"row {row.row}: the chat template {what}, and was stopped. It is a program that came with "
        "the tokenizer: look at it before you go on, or give another with chat_template.",
    )
