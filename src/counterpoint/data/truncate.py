"""Cutting a pair to the run's length: one pure function, every policy by name.

For every policy: prompt + completion never exceed ``max_length``, no completion becomes empty,
no prompt becomes empty that was not, a pair that fits is left alone, and each cut is counted.

Not here: deciding what becomes of a pair that cannot be cut (``prepare`` raises or drops).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


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
            does; "prompt_start" and "prompt_end" cut the prompt, down to one token beside BOS,
            and only then the ends of the completions; "drop" cuts nothing.
        keep_first: the prompt's first token is BOS and stays under every policy.

    Returns:
        The pair that is left; ``fits`` is False where "completion_end" finds a prompt without
        room for a completion token, and where "drop" finds a pair over a limit.
    """
    pair = Truncation(prompt, chosen, rejected)
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest <= max_length and longest <= (max_completion_length or longest):
        return pair
    if policy == "drop":
        return replace(pair, fits=False)
    if policy == "completion_end":
        kept = prompt
    else:
        kept = _cut_prompt(
            prompt,
            room=max_length - min(longest, max_completion_length or longest),
            floor=min(len(prompt), 1 + keep_first, max_length - 1),
            from_start=policy == "prompt_start",
            keep_first=keep_first,
        )
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


def _cut_prompt(
    prompt: Sequence[int], *, room: int, floor: int, from_start: bool, keep_first: bool
) -> Sequence[int]:
    size = min(len(prompt), max(room, floor))
    if not from_start:
        return prompt[:size]
    if keep_first and size > 0:
        return [*prompt[:1], *prompt[len(prompt) - size + 1 :]]
    return prompt[len(prompt) - size :]
