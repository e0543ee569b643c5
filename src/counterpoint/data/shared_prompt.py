"""Where the prompt ends in two sides that both hold it: as turns, as a transcript, as plain text.

Not here: which columns a row's prompt and sides stand in (``formats``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.data.cells import fail
from counterpoint.errors import DataError
from counterpoint.preference_row import Message, Text

LIKELY_PROMPTS = ("question", "query", "source", "input", "context", "user", "src")
"""Columns that are probably a misnamed prompt where a row has none."""

ASSISTANT_TAG = "\n\nAssistant:"
"""What precedes an assistant's turn in transcripts such as hh-rlhf's."""


def begun_in(prompt: list[Message], side: list[Message]) -> bool:
    """Whether a whole conversation goes on in the very turn that its prompt begins."""
    if len(side) < len(prompt):
        return False
    last = side[len(prompt) - 1]
    return bool(
        prompt[-1]["role"] == last["role"] == "assistant"
        and prompt[:-1] == side[: len(prompt) - 1]
        and isinstance(prompt[-1].get("content"), str)
        and isinstance(last.get("content"), str)
        and last["content"] != prompt[-1]["content"]
        and last["content"].startswith(prompt[-1]["content"])
    )


def continuation(prompt: list[Message], side: list[Message]) -> list[Message]:
    """What is left of the prompt's last turn, and the turns that follow it."""
    begun, turn = prompt[-1], side[len(prompt) - 1]
    new = {name: value for name, value in turn.items() if begun.get(name) != value}
    rest = turn["content"][len(begun["content"]) :]
    return [{**new, "role": "assistant", "content": rest}, *side[len(prompt) :]]


def split_messages(
    chosen: list[Message], rejected: list[Message], row: int
) -> tuple[Text, Text, Text]:
    """The longest common start is the prompt; at least one turn stays on each side."""
    longest = min(len(chosen), len(rejected)) - 1
    shared = next((n for n in range(longest) if chosen[n] != rejected[n]), longest)
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            fail("CP207", row, field, f"ends with a turn of role {side[-1]['role']!r}.")
        if side[shared]["role"] != "assistant":
            fail(
                "CP206",
                row,
                field,
                f"turn {shared} is of role {side[shared]['role']!r} and differs from the other "
                "side's; the two conversations may differ from an assistant's turn on only.",
            )
    if shared == 0:
        fail("CP206", row, "chosen", "and field rejected share no turn, so there is no prompt.")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_text(
    raw: Mapping[str, Any], chosen: str, rejected: str, row: int
) -> tuple[Text, Text, Text]:
    """Transcripts are cut after the last "Assistant:", other text where the two first differ."""
    if is_transcript(chosen) or is_transcript(rejected):
        prompt, ours = _cut_transcript(chosen)
        other, theirs = _cut_transcript(rejected)
        if prompt != other:
            fail(
                "CP206",
                row,
                "rejected",
                "answers another prompt than field chosen: the transcripts differ before the "
                "last 'Assistant:'. Remove the row or repair one side.",
            )
        return prompt, ours, theirs
    likely = [column for column in LIKELY_PROMPTS if isinstance(raw.get(column), str)]
    if likely:
        raise DataError(
            "CP201",
            f"row {row} has no prompt, but a column {likely[0]} that may be it. Rename it to "
            "prompt; if it is not the prompt, remove it.",
        )
    shared = _shared_characters(chosen, rejected)
    if shared == 0:
        fail(
            "CP206",
            row,
            "chosen",
            "and field rejected share no beginning, so there is no prompt. Give a column prompt; "
            "an empty one trains without a prompt.",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue of "Human:" and "Assistant:"."""
    return text.lstrip().startswith(("Human:", "Assistant:")) and ASSISTANT_TAG in text


def _cut_transcript(text: str) -> tuple[str, str]:
    end = text.rfind(ASSISTANT_TAG)
    end = 0 if end < 0 else end + len(ASSISTANT_TAG)
    return text[:end], text[end:]


def _shared_characters(chosen: str, rejected: str) -> int:
    """Length of the common start, a trailing space left to the completions, as in TRL.

    Tokenizers join a space with the word after it, so a prompt ending in one would split words
    where generation never does. At least one character stays on each side.
    """
    longest = min(len(chosen), len(rejected)) - 1
    if chosen[:longest] == rejected[:longest]:
        shared = longest
    else:
        shared = next(n for n in range(longest) if chosen[n] != rejected[n])
    differs = shared < len(chosen) and chosen[shared] != rejected[shared]
    if differs and shared and chosen[shared - 1] == " ":
        shared -= 1
    return shared
