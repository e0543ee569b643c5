"""What of a rendered prompt is the template's own writing: found by rendering it without words.

1. The prompt is rendered once more, with a mark in place of what each turn says. What stands
   before the first mark and after the last one frames the words; system turns at the beginning
   keep theirs, for they are part of the frame.
2. Where the prompt's own rendering is not these pieces with words between them, nothing is known,
   and the prompt is cut as plain text is.
3. Places in text become places among tokens by the longest common start of ids, as the prompt's
   own end does. Only those that are asked for are looked up.

Not here: cutting (``truncate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import render_prompt
from counterpoint.data.tokenize import prompt_ids
from counterpoint.data.truncate import Frame, Span
from counterpoint.errors import DataError
from counterpoint.preference_row import Message, PreferenceRow

MARK = "WORDS_OF_TURN_{}_STAND_HERE"

SYSTEM = ("system", "developer")
"""Roles of turns that frame what the others say."""


def frame_of(
    row: PreferenceRow, text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Frame | None:
    """Find what frames the words of a prompt.

    Args:
        row: the row.
        text: its prompt, as ``chat.render`` wrote it.
        ids: the prompt's tokens, BOS included; fewer than those of the text where some of its end
            went to the completions.
        tokenizer: the one that made them.

    Returns:
        None for plain text, and where a template does not write the same around other words.

    Raises:
        DataError: CP217 and CP222, as ``chat.render``.
        SetupError: CP502, likewise.
    """
    if isinstance(row.prompt, str):
        return None
    spans = _spans(row, row.prompt, text, tokenizer)
    if not spans:
        return None

    @cache
    def token_at(place: int) -> int:
        both = zip(prompt_ids(text[:place], tokenizer), ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))

    leading, (start, _) = spans[0]
    words = _words(row.prompt[0]).strip() if row.prompt[0]["role"] in SYSTEM else ""
    place = text.find(words, 0, start) if words else -1
    return Frame(
        head=token_at(start),
        tail=len(ids) - token_at(spans[-1][1][1]),
        turns=_Tokens([span for role, span in spans if role == leading], token_at),
        system=(token_at(place), token_at(place + len(words))) if place >= 0 else (0, 0),
    )


class _Tokens(Sequence[Span]):
    """Spans of text as spans of tokens; a prompt of many turns is not tokenized for each."""

    def __init__(self, spans: Sequence[Span], token_at: Callable[[int], int]) -> None:
        self._spans, self._token_at = spans, token_at

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, turn: Any) -> Any:
        start, end = self._spans[turn]
        return self._token_at(start), self._token_at(end)


def _spans(
    row: PreferenceRow, prompt: list[Message], text: str, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, Span]]:
    """Role and place of the words of each turn that has any; empty where that is not certain."""
    first = len(list(takewhile(lambda turn: turn["role"] in SYSTEM, prompt)))
    spoken = [turn for turn in range(first, len(prompt)) if _words(prompt[turn]).strip()]
    pieces = _pieces(row, prompt, spoken, tokenizer)
    if not pieces or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return []
    found, place, last = [], len(pieces[0]), len(text) - len(pieces[-1])
    for turn, piece in zip(spoken, pieces[1:], strict=True):
        words = _words(prompt[turn])
        said = next((w for w in (words, words.strip()) if text.startswith(w, place)), "")
        end = last if turn == spoken[-1] else text.find(piece, place + len(said))
        if end < place:
            return []
        found.append((str(prompt[turn]["role"]), (place, end)))
        place = end + len(piece)
    return [(role, span) for role, span in found if span[0] < span[1]]


def _pieces(
    row: PreferenceRow, prompt: list[Message], spoken: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What a template writes around the words of turns, one piece more than turns."""
    marks = {turn: MARK.format(turn) for turn in spoken}
    wordless = [
        {**turn, "content": marks[n]} if n in marks else turn for n, turn in enumerate(prompt)
    ]
    try:
        rest = render_prompt(replace(row, prompt=wordless), tokenizer)
    except DataError as error:
        if error.code != "CP213":  # a template may ask something of the words
            raise
        return []
    pieces = []
    for mark in marks.values():
        before, seen, rest = rest.partition(mark)
        if not seen:
            return []
        pieces.append(before)
    return [*pieces, rest] if pieces else []


def _words(turn: Message) -> str:
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""
