"""Cutting a pair to the run's length: one pure function, every policy by name.

For every policy: prompt + completion never exceed ``max_length``, no completion becomes empty,
no prompt becomes empty that was not, a pair that fits is left alone, and each cut is counted.
Spans that must not be cut, such as the tokens of an image, stay whole or go whole.

A policy that cuts the prompt cuts words, and leaves what frames them: the system turn and the mark
of the first turn before them, the mark that opens the answer after them.

Not here: deciding what becomes of a pair that cannot be cut (``prepare`` raises or drops), and
what frames a prompt (``frame``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEAST_SHARE = 4
"""A prompt that is cut keeps one token in so many of ``max_length``, if it has them; fewer only
where a span goes whole."""

Span = tuple[int, int]
"""First place and the one past the last."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What of a prompt is not to be cut as words are, in tokens.

    That is a chat template's own writing around the words, and spans that make no sense in part.

    Args:
        head: tokens before the first words: BOS, system turn, mark of the first turn.
        tail: tokens after the last words: the mark that opens the answer.
        turns: first token and the one past the last of the words of each turn of the role that
            speaks first, in order, none of them empty. The head leads into any of these, and the
            tail out of any.
        system: the same of the words of a system turn in the head; they are cut themselves where
            the head is too long. (0, 0): there are none.
        whole: spans that are kept whole or go whole; in order, apart, and without BOS.
    """

    head: int = 0
    tail: int = 0
    turns: Sequence[Span] = ()
    system: Span = (0, 0)
    whole: Sequence[Span] = ()


@dataclass(frozen=True, slots=True)
class Truncation:
    """A pair after cutting, and what was cut.

    Args:
        prompt: the prompt's ids that are left.
        chosen: the chosen completion's ids that are left.
        rejected: the rejected completion's ids that are left.
        cut_prompt: tokens taken from the prompt.
        cut_chosen: tokens taken from the chosen completion.
        cut_rejected: tokens taken from the rejected completion.
        fits: False if the policy cannot or must not make the pair fit; then nothing is cut.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    cut_prompt: int = 0
    cut_chosen: int = 0
    cut_rejected: int = 0
    fits: bool = True


def truncate(
    prompt: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    *,
    max_length: int,
    max_completion_length: int | None = None,
    policy: str = "completion_end",
    keep_first: bool = False,
    frame: Frame | None = None,
) -> Truncation:
    """Make a pair fit.

    Args:
        prompt: ids of the prompt.
        chosen: ids of the chosen completion, at least one.
        rejected: ids of the rejected completion, at least one.
        max_length: most tokens of prompt + completion, at least 2.
        max_completion_length: most tokens of a completion, from 1 to ``max_length - 1``; what
            is over is cut off its end, or drops the row under "drop". None: no limit of its own.
        policy: "completion_end" cuts the ends of the completions and never the prompt, as TRL
            does; "prompt_start" and "prompt_end" cut the prompt, down to a quarter of
            ``max_length``, and only then the ends of the completions; "drop" cuts nothing.
        keep_first: the prompt's first token is BOS and stays under every policy.
        frame: of a prompt that a chat template wrote; head and tail are kept as long as they take
            no more than half of what is left. None: of plain text the end, or the beginning, is
            kept.

    Returns:
        The pair that is left; ``fits`` is False where "completion_end" finds a prompt without
        room for a completion token, where "drop" finds a pair over a limit, and where nothing of
        the prompt would be left without the spans that go.
    """
    pair = Truncation(prompt, chosen, rejected)
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest <= max_length and longest <= (max_completion_length or longest):
        return pair
    if policy == "drop":
        return replace(pair, fits=False)
    kept = prompt
    if policy != "completion_end":
        own = frame or Frame(head=int(keep_first))
        room = max_length - min(longest, max_completion_length or longest)
        least = max(1 + keep_first, max_length // LEAST_SHARE)
        size = min(len(prompt), max(room, least), max_length - 1)
        cut = _cut_start if policy == "prompt_start" else _cut_end
        stretch = cut(len(prompt), size, own, int(keep_first))
        begin, end = _widened(stretch, own.whole)
        if (begin, end) != stretch and len(prompt) - (end - begin) <= keep_first:
            return replace(pair, fits=False)
        kept = [*prompt[:begin], *prompt[end:]]
    room = min(max_length - len(kept), max_completion_length or max_length)
    if room < 1:
        return replace(pair, fits=False)
    return Truncation(
        prompt=kept,
        chosen=chosen[:room],
        rejected=rejected[:room],
        cut_prompt=len(prompt) - len(kept),
        cut_chosen=max(0, len(chosen) - room),
        cut_rejected=max(0, len(rejected) - room),
    )


def _cut_start(length: int, size: int, frame: Frame, first: int) -> Span:
    """What to cut so that at most ``size`` tokens are left: between the head and some word."""
    lost = length - size
    if not lost:
        return 0, 0
    if _fits(frame, frame.head, size):
        head, place = frame.head, frame.head + lost
        turn = bisect_right(frame.turns, place, key=lambda words: words[1])
        if turn < len(frame.turns):
            place = max(place, frame.turns[turn][0])
        return head, place
    if frame.system[0] + lost < frame.system[1]:
        return frame.system[0], frame.system[0] + lost
    head = min(first, size)
    return head, head + lost


def _cut_end(length: int, size: int, frame: Frame, first: int) -> Span:
    """What to cut so that at most ``size`` tokens are left: between some word and the tail."""
    if size == length or not _fits(frame, frame.tail, size):
        return size, length
    place = size - frame.tail
    turn = bisect_left(frame.turns, place, key=lambda words: words[0])
    if turn:
        place = min(place, frame.turns[turn - 1][1])
    return place, length - frame.tail


def _widened(stretch: Span, whole: Sequence[Span]) -> Span:
    """A stretch that is cut, and the rest of each span that it would cut in two."""
    begin, end = stretch
    for start, stop in whole:
        if start < end and begin < stop:
            begin, end = min(begin, start), max(end, stop)
    return begin, end


def _fits(frame: Frame, part: int, size: int) -> bool:
    """Whether a part of the frame leaves room for words: more than the frame itself takes."""
    return 2 * part <= size and frame.head + frame.tail < size


def spans_within(spans: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    """What is left of spans in a stretch that is cut out, counted from its beginning.

    Args:
        spans: first place and the one past the last of each, flat, in order and apart.
        start: first place of the stretch.
        end: the one past its last.
    """
    edges = [min(max(place, start), end) - start for place in spans]
    kept = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    return tuple(place for span in kept for place in span)
