"""Whether a chat template can be asked to keep what it would leave out, by a variable of its own.

A way is offered only where it is seen to work: the template's variables are tried.

Not here: what was left out (``survival``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import render
from counterpoint.data.survival import LostText, losses
from counterpoint.errors import DataError
from counterpoint.preference_row import PreferenceRow

SWITCHES = (
    "preserve_thinking",
    "keep_thinking",
    "enable_thinking",
    "clear_thinking",
    "truncate_history_thinking",
    "drop_thinking",
    "thinking",
)
"""Names under which templates are known to ask what they keep; first those that say so."""

MOST_SWITCHES = 12
"""Variables of a template that are tried."""

GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables that whoever renders gives: no switches."""


def check_completions(
    row: PreferenceRow, lost: Iterable[LostText], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a row of whose trained turns the template leaves something out.

    Args:
        row: the row.
        lost: its ``losses``.
        tokenizer: its template may have an argument that keeps it.

    Raises:
        DataError: CP226.
    """
    for loss in lost:
        if loss.how != "dropped" or loss.where == "prompt":
            continue
        switch = switch_for(row, [loss], tokenizer)
        remedy = (
            f"Give the row chat_template_kwargs {json.dumps(switch)}, with which they stay"
            if switch
            else "Use a template that writes them"
        )
        raise DataError(
            "CP226",
            f"row {row.row}: the chat template {loss.in_words}, {loss.shown!r}, and another answer "
            f"than the row's would be trained. {remedy}, or take them out of the row.",
        )


def switch_for(
    row: PreferenceRow, lost: Iterable[LostText], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """An argument of the template with which a row loses nothing of a kind that it lost.

    Args:
        row: the row.
        lost: what it lost; none of it may be lost again, nor anything else.
        tokenizer: its template is asked.

    Returns:
        One argument and its value; None where the template has none that does.
    """
    wanted = {loss[:3] for loss in lost}
    given = row.template_kwargs or {}
    now = {loss[:3] for loss in losses(row, render(row, tokenizer))}
    for name in _switches(str(tokenizer.get_chat_template(tools=row.tools))):
        for value in (True, False):
            try:
                other = replace(row, template_kwargs={**given, name: value})
                left = {loss[:3] for loss in losses(other, render(other, tokenizer))}
            except DataError:
                continue
            if not left & wanted and left <= now:
                return {name: value}
    return None


@lru_cache(maxsize=64)
def _switches(template: str) -> tuple[str, ...]:
    """Variables of a template that may be switches, the likeliest first."""
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        free = meta.find_undeclared_variables(parsed)
    except TemplateError:  # tags of transformers' own
        free = set(re.findall(r"[A-Za-z_]\w*", template)) & set(SWITCHES)
    named = [name for name in SWITCHES if name in free]
    others = sorted(free - GIVEN - set(named))
    return tuple([*named, *others][:MOST_SWITCHES])
