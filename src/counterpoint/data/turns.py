"""Which parts of a completion of several turns are the assistant's own words.

A completion may hold what no model is to write: the results of tools, and turns of the user
between those of the assistant. They are read, as a prompt is, and carry no loss.

1. A template that marks what is generated (``{% generation %}``) is believed, where it marks as
   many parts as there are turns of the assistant.
2. Else a turn begins where the same conversation, cut off before it, opens the assistant's turn,
   and it ends where the conversation that is cut off behind it ends. Both must be beginnings of the
   whole text, character for character.
3. Some are not: a template may write a last turn otherwise than the same turn with others after it.
   Then the place is found in the whole conversation: by a mark in the content of that turn, and by
   the EOS token that ends it, which must come before the content of the next one.
4. What is not found so is nowhere guessed: the row cannot be used (CP248), unless all turns train.

Places are in text here, and become tokens in ``tokenize.PairTokenizer.said``.

Not here: completions of one turn, all of which carry loss; text that spells turns, which is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from counterpoint.data.bounds import OutOfTime, bounded_time
from counterpoint.data.chat import MOST_SECONDS, Rendered, apply_template, conversations
from counterpoint.data.options import Limits
from counterpoint.data.tokenize import Tokens
from counterpoint.data.truncate import Span, Truncation, spans_within
from counterpoint.errors import DataError
from counterpoint.preference_row import ALL_TURNS, LAST_TURN, Message, PreferenceRow

Said = tuple[Span, ...] | None
"""The assistant's turns of a completion: first place and the one past the last of each, in order.
Empty where all of the completion is one turn; None where the turns were not found."""

MARK = "WORDS_OF_THIS_TURN"
"""Stands for the content of a turn whose place is looked for."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def turns_of(
    row: PreferenceRow, rendered: Rendered, tokenizer: PreTrainedTokenizerBase
) -> tuple[Said, Said]:
    """Where in the rendered texts the assistant speaks.

    Args:
        row: the row.
        rendered: what ``chat.render`` made of it.
        tokenizer: whose template rendered it.

    Returns:
        Of chosen and rejected, spans of ``rendered.chosen`` and ``rendered.rejected``. The first
        turn of a completion begins at 0: where the prompt ends is decided in tokens.

    Raises:
        DataError: CP217 and CP222, as ``render``.
    """
    if isinstance(row.prompt, str) or max(len(row.chosen), len(row.rejected)) == 1:
        return (), ()
    before, *sides = conversations(row)
    template = _Template(row, tokenizer)
    texts = rendered.chosen, rendered.rejected
    chosen, rejected = (
        template.said(before, side, text, _common(text, rendered.prompt))
        for side, text in zip(sides, texts, strict=True)
    )
    return chosen, rejected


def given_spans(
    row: PreferenceRow, tokens: Tokens, pair: Truncation, limits: Limits
) -> tuple[list[int], list[int]]:
    """The spans of both completions that carry no loss, as ``TokenPair`` holds them.

    Args:
        row: the row, for errors.
        tokens: its ids before they were cut.
        pair: and after.
        limits: of the run: which turns are trained.

    Raises:
        DataError: CP247 where cutting left no token that is trained; CP248 where the turns of a
            completion were not found.
    """
    whole = {"chosen": tokens.chosen_said, "rejected": tokens.rejected_said}
    chosen, rejected = (
        _given(row.row, field, said, getattr(tokens, field), pair, limits)
        for field, said in whole.items()
    )
    return chosen, rejected


def _given(
    row: int, field: str, said: Said, ids: Sequence[int], pair: Truncation, limits: Limits
) -> list[int]:
    if limits.train_turns == ALL_TURNS or said == ():
        return []
    if said is None:
        raise DataError(
            "CP248",
            f"row {row}, field {field}: which of its tokens the assistant says cannot be found, "
            "since the chat template writes a turn otherwise where others follow it. Use one that "
            'marks the assistant\'s words with {% generation %}, or set train_turns="all".',
        )
    wanted = said[-1:] if limits.train_turns == LAST_TURN else said
    edges = [place for start, end in wanted if start < end for place in (start, end)]
    kept = getattr(pair, field)
    spans = spans_within([0, *edges, len(ids)], 0, len(kept))
    without = sum(spans[1::2]) - sum(spans[::2])
    # nothing predicts the first token of a text without a prompt
    unseen = not pair.prompt and spans[:1] != (0,)
    if without + unseen >= len(kept):
        what = "its last turn" if limits.train_turns == LAST_TURN else "the assistant's turns"
        raise DataError(
            "CP247",
            f"row {row}, field {field}: none of the {len(kept):,} tokens that the limits leave is "
            f"of {what}, so that nothing of it would train. Raise max_length, or set "
            'truncation="prompt_start" or another train_turns.',
        )
    return [*spans]


class _Template:
    """A chat template, asked how it writes parts of a conversation.

    Args:
        row: whose tools and arguments it is given.
        tokenizer: that has it.
    """

    def __init__(self, row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> None:
        self._row, self._tokenizer = row, tokenizer

    def said(
        self, before: Sequence[Message], side: Sequence[Message], text: str, prompt: int
    ) -> Said:
        """The assistant's turns of one completion, as spans of its text.

        Args:
            before: the conversation up to the completion.
            side: the completion.
            text: all of it, rendered.
            prompt: how much of the text the prompt is.
        """
        if len(side) == 1:
            return ()
        messages, first, last = [*before, *side], len(before), len(before) + len(side) - 1
        marked = self._marked(messages, first, text)
        if marked is not None:
            return marked
        spans: list[Span] = []
        at = 0
        for turn in range(first, last + 1):
            if messages[turn]["role"] != "assistant":
                continue
            start = 0 if turn == first else self._start(messages, turn, text)
            if start is None:
                return None
            words = max(start, prompt)  # the prompt has turns, and ends of turns, of its own
            end = len(text) if turn == last else self._end(messages, turn, words, text)
            if end is None or not at <= start <= end:
                return None
            spans.append((start, end))
            at = end
        return tuple(spans)

    def _marked(self, messages: list[Message], first: int, text: str) -> Said:
        """What the template itself marks as generated; None where that is not turns."""
        tokenizer, row = self._tokenizer, self._row
        template = tokenizer.chat_template
        if not isinstance(template, str) or not _MARKED.search(template):
            return None
        values: dict[str, Any] = {**tokenizer.special_tokens_map, **(row.template_kwargs or {})}
        try:
            with bounded_time(MOST_SECONDS):
                texts, found = render_jinja_template(
                    [messages],
                    tools=row.tools,
                    chat_template=template,
                    return_assistant_tokens_mask=True,
                    **values,
                )
        except (OutOfTime, MemoryError, RecursionError):
            return None
        except Exception:  # a template is a stranger's program, and a mark is one more in it
            return None
        spoken = [turn for turn, one in enumerate(messages) if one["role"] == "assistant"]
        if texts[0] != text or len(found[0]) != len(spoken):
            return None
        own = [(int(a), int(b)) for a, b in found[0]][-sum(turn >= first for turn in spoken) :]
        # what comes after the last words is EOS, and white space that is cut off
        return *own[:-1], (own[-1][0], len(text))

    def _start(self, messages: list[Message], turn: int, text: str) -> int | None:
        opened = self._text(messages[:turn], add_generation_prompt=True)
        if opened is None:
            return None
        if text.startswith(opened):
            return len(opened)
        closed = self._text(messages[:turn])
        if closed is None:
            return None
        if text.startswith(closed):  # it opens a turn otherwise than it then writes it
            return _common(text, opened)
        if not opened.startswith(closed) or opened == closed:
            return None
        return self._start_by_mark(messages, turn, opened[len(closed) :], text)

    def _start_by_mark(
        self, messages: list[Message], turn: int, opening: str, text: str
    ) -> int | None:
        """Behind the opening that stands before a turn's content, in the whole conversation."""
        marked = self._with_mark(messages, turn)
        place = marked.find(MARK)
        found = marked.rfind(opening, 0, max(place, 0))
        start = found + len(opening)
        if found < 0 or text[:start] != marked[:start]:
            return None
        # the opening must be this turn's own: nothing of the turn before stands behind it
        _, mark, rest = self._with_mark(messages, turn - 1).rpartition(MARK)
        return start if mark and text.endswith(rest) and start >= len(text) - len(rest) else None

    def _end(self, messages: list[Message], turn: int, start: int, text: str) -> int | None:
        closed = self._text(messages[: turn + 1])
        if closed is not None and text.startswith(closed):
            return len(closed)
        eos = self._tokenizer.eos_token
        if not eos:
            return None
        if closed is not None:  # some write EOS behind a conversation, and not behind a turn
            bare = closed.rstrip().removesuffix(eos)
            if len(bare) > start and text.startswith(bare):
                return len(bare)
        place = text.find(eos, start)
        marked = self._with_mark(messages, turn + 1)
        following = marked.find(MARK)
        end = place + len(eos)
        if place < 0 or end > following or text[:following] != marked[:following]:
            return None
        return end

    def _with_mark(self, messages: list[Message], turn: int) -> str:
        """All of the conversation, a mark as the content of one turn; "" where it is refused."""
        one = messages[turn]
        is_parts = isinstance(one.get("content"), list)
        content = [{"type": "text", "text": MARK}] if is_parts else MARK
        changed = [*messages[:turn], {**one, "content": content}, *messages[turn + 1 :]]
        return self._text(changed) or ""

    def _text(self, messages: list[Message], **ending: bool) -> str | None:
        """None where the template refuses a conversation that is cut off."""
        try:
            return apply_template(self._row, messages, self._tokenizer, **ending)
        except DataError as error:
            if error.code != "CP213":
                raise
            return None


def _common(one: str, other: str) -> int:
    """Length of the longest common start of two texts."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)
