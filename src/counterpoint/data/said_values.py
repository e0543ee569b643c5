"""What the messages of a row say, value by value: what must be found again in the rendered text.

Values are what turns say (content, thoughts, names and arguments of tool calls) and the names of
the tools.

Not here: looking for them (``survival``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from counterpoint.data.chat import THOUGHTS
from counterpoint.preference_row import Message

TAG = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[(/?)THINK\]")
"""What begins and ends thoughts that stand in the content."""

_WHAT = {"system": "system", "developer": "system", "tool": "results"}


class SaidValue(NamedTuple):
    """Something that a row says.

    Args:
        what: "system", "content", "thoughts", "calls", "results" or "tools".
        where: "prompt", "chosen" or "rejected".
        text: as the row has it.
    """

    what: str
    where: str
    text: str


def values_said(messages: Iterable[Message], where: str) -> list[SaidValue]:
    """What messages say, in the order in which most templates write it."""
    found: list[SaidValue] = []
    for message in messages:
        content = message.get("content")
        several = content if isinstance(content, list) else [{"text": content or ""}]
        parts = [part.get("text", "") for part in several]
        if len(message) > 2 and message["role"] == "assistant":
            found += [SaidValue("thoughts", where, said) for said in _thoughts(message, parts)]
        what = _WHAT.get(message["role"], "content")
        for part in parts:
            if part and not part.isspace():
                found.append(SaidValue(what, where, part))
        if "tool_calls" in message:
            calls = chain.from_iterable(map(_called, message["tool_calls"] or ()))
            found += [SaidValue("calls", where, said) for said in calls if said.strip()]
    return found


def _thoughts(message: Message, parts: Sequence[str]) -> Iterator[str]:
    """Thoughts in fields of their own; some data hold them in the content too: once is enough."""
    for name in THOUGHTS:
        if name in message and isinstance(message[name], str):
            thought = message[name].strip()
            if thought and not any(thought in part for part in parts):
                yield thought


def _called(call: Any) -> Iterator[str]:
    """A call's name, and what its arguments hold."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping):
        return
    if isinstance(function.get("name"), str):
        yield function["name"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            yield arguments
            return
    yield from _leaves(arguments)


def _leaves(value: Any) -> Iterator[str]:
    """What an object of JSON holds, without its keys."""
    if isinstance(value, Mapping):
        yield from chain.from_iterable(map(_leaves, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_leaves, value))
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):  # these have too many spellings
        yield f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def tools_named(tools: Iterable[Any]) -> Iterator[str]:
    """The names of the tools that a row offers."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield function["name"]


def parts_said(value: SaidValue) -> Iterator[SaidValue]:
    """A content without the marks of thoughts, which templates write in their own way."""
    place, inside = 0, False
    for tag in TAG.finditer(value.text):
        inside = not (tag[1] or tag[2])
        said = value.text[place : tag.start()].strip()
        if said:  # what is ended was thought, where the prompt began it too
            yield value._replace(what="content" if inside else "thoughts", text=said)
        place = tag.end()
    rest = value.text[place:].lstrip()
    if rest:
        yield value._replace(what="thoughts" if inside else "content", text=rest)


def spellings(said: str) -> Iterator[str]:
    """A text, and how JSON has it."""
    yield said
    for spelled in (json.dumps(said, ensure_ascii=False), json.dumps(said)):
        if spelled[1:-1] != said:
            yield spelled[1:-1]
