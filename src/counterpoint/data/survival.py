"""Whether what a row says survives its chat template: every value is looked for in the text.

1. Values are what turns say (content, thoughts, names and arguments of tool calls) and the names of
   the tools. Numbers and words may be spelled as JSON or as Python spells them; white space around
   thoughts is layout.
2. First in order, as nearly every template writes them. Where that fails, the longest value takes
   its place first, wherever it is, so that a short one is not found inside of a long one.
3. A value that has no place of its own was dropped, or changed if a part of it is there. One that
   stands more often in the text than in the row is repeated.
4. A way to keep it is offered only where it is seen to: the template's own variables are tried.

What a template adds (a default system turn, a date, marks) is none of this. Plain text goes through
no template.

Not here: counting (``counts``), and saying it (``doctor.of_data``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, takewhile
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import THOUGHTS, Rendered, conversations, is_prefilled, render
from counterpoint.errors import DataError
from counterpoint.records import Message, PreferenceRow

TAG = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[(/?)THINK\]")
"""What begins and ends thoughts that stand in the content."""

LEAST_REPEATED = 24
"""Characters from which a text that is there twice is no accident."""

PARTS_SEEN = 3
"""Parts of a value that are looked for, to tell a changed one from a dropped one."""

LEAST_PART = 12
"""Characters of such a part."""

SHOWN = 40
"""Characters of a value that are shown."""

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


class Loss(NamedTuple):
    """One thing that did not survive.

    Args:
        how: "dropped", "changed" or "repeated".
        what: "system", "content", "thoughts", "calls", "results", "tools" or "spaces".
        where: "prompt", "chosen" or "rejected".
        shown: how the value begins.
    """

    how: str
    what: str
    where: str
    shown: str

    @property
    def in_words(self) -> str:
        """What happened to what: "drops thoughts of the prompt"."""
        return f"{_VERBS[self.how]} {_NAMES[self.what]} of {_PLACES[self.where]}"

    @property
    def code(self) -> str:
        """The warning's code."""
        return _CODES[self.how]


_JSON = json.JSONEncoder(ensure_ascii=False)
_CODES = {"dropped": "CW216", "changed": "CW217", "repeated": "CW218"}
_VERBS = {"dropped": "drops", "changed": "changes", "repeated": "repeats"}
_NAMES = {
    "system": "the system turn",
    "content": "content",
    "thoughts": "thoughts",
    "calls": "tool calls",
    "results": "tool results",
    "tools": "the tools",
    "spaces": "white space",
}
_PLACES = {"prompt": "the prompt", "chosen": "chosen", "rejected": "rejected"}


_WHAT = {"system": "system", "developer": "system", "tool": "results"}


class _Value(NamedTuple):
    what: str
    where: str
    text: str


_Fate = tuple[str, _Value]
"""How a value was lost."""


def losses(row: PreferenceRow, rendered: Rendered) -> list[Loss]:
    """What of a row its rendered texts do not say as the row does.

    Args:
        row: the row.
        rendered: what ``chat.render`` made of it.

    Returns:
        Each kind of loss once; nothing for plain text.
    """
    if isinstance(row.prompt, str):
        return []
    asked, good, bad = (
        _values(messages, where)
        for messages, where in zip(conversations(row), _PLACES, strict=True)
    )
    in_order: list[_Fate] = []
    end = _walk(asked, rendered.chosen, 0, in_order)
    found = in_order if end >= 0 else []
    for side, text in ((good, rendered.chosen), (bad, rendered.rejected)):
        in_order = []
        begun = end >= 0 and (side is good or text.startswith(rendered.chosen[:end]))
        if begun and _walk(side, text, end, in_order) >= 0:
            found.extend(in_order)
        else:
            found += _missing([*asked, *side], text, _completion_begins(row, rendered, text))
    found += _repeated([*asked, *good], [*asked, *good], rendered.chosen, row)
    found += _repeated(bad, [*asked, *bad], rendered.rejected, row)
    for name in _tool_names(row.tools or []):
        if name not in rendered.chosen:
            found.append(("dropped", _Value("tools", "prompt", name)))
    once: dict[tuple[str, str, str], str] = {}
    for how, (what, where, said) in found:
        once.setdefault((how, what, where), said)
    return [Loss(*kind, _shown(said)) for kind, said in once.items()]


def as_column(lost: Iterable[Loss]) -> str:
    """What a row lost, as one text; "" for nothing."""
    found = [*lost]
    return _JSON.encode(found) if found else ""


def from_column(text: str) -> list[Loss]:
    """The same again."""
    return [Loss(*each) for each in json.loads(text)] if text else []


# Values


def _values(messages: Iterable[Message], where: str) -> list[_Value]:
    """What messages say, in the order in which most templates write it."""
    found: list[_Value] = []
    for message in messages:
        content = message.get("content")
        parts = [p["text"] for p in content] if isinstance(content, list) else [content or ""]
        if len(message) > 2 and message["role"] == "assistant":
            found += [_Value("thoughts", where, said) for said in _thoughts(message, parts)]
        what = _WHAT.get(message["role"], "content")
        for part in parts:
            if part and not part.isspace():
                found.append(_Value(what, where, part))
        if "tool_calls" in message:
            calls = chain.from_iterable(map(_called, message["tool_calls"] or ()))
            found += [_Value("calls", where, said) for said in calls if said.strip()]
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


def _tool_names(tools: Iterable[Any]) -> Iterator[str]:
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield function["name"]


# Places in the text


def _walk(values: Iterable[_Value], text: str, place: int, lost: list[_Fate]) -> int:
    """Find values one after the other; white space that some of them lost is noted.

    Returns:
        The place after the last one; -1 where they are not all there in this order.
    """
    for value in values:
        said = value.text
        start = text.find(said, place)
        if start < 0:
            said = said.strip()
            start = text.find(said, place)
            if start < 0:
                return -1
            lost.append(("changed", value._replace(what="spaces")))
        place = start + len(said)
    return place


def _completion_begins(row: PreferenceRow, rendered: Rendered, text: str) -> int:
    """Where at the earliest a completion's values stand; a begun turn is part of it."""
    if is_prefilled(row.prompt):
        return 0
    if text.startswith(rendered.prompt):
        return len(rendered.prompt)
    both = zip(rendered.prompt, text, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))


class _Taken:
    """The text, and what of it has been found to be some value's."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._bare = "".join(text.split())
        self._spans: list[tuple[int, int]] = []
        self._held: list[str] = []

    def take(self, said: str, begin: int) -> bool:
        """Whether a value has a place of its own from there on, which then is taken."""
        start = self.text.find(said, begin)
        while start >= 0:
            end = start + len(said)
            over = [span for span in self._spans if start < span[1] and span[0] < end]
            if not over:
                self._spans.append((start, end))
                self._held.append("".join(said.split()))
                return True
            start = self.text.find(said, max(span[1] for span in over))
        return False

    def fate(self, said: str) -> str:
        """What became of one that has none: "spaces" if only white space within it changed."""
        words = said.split()
        bare = "".join(words)
        if len(words) > 1 and self._is_free(bare):
            return "spaces"
        size = max(LEAST_PART, len(bare) // PARTS_SEEN)
        parts = (bare[at : at + size] for at in range(0, len(bare) - size, size))
        return "changed" if any(map(self._is_free, parts)) else "dropped"

    def _is_free(self, bare: str) -> bool:
        """Whether it stands, whatever the white space, where no other value has been found."""
        return self._bare.count(bare) > sum(held.count(bare) for held in self._held)


def _missing(values: Iterable[_Value], text: str, begin: int) -> list[_Fate]:
    """What the text does not hold as it is, in whatever order it holds the rest.

    Args:
        values: of the prompt and one completion.
        text: of the two.
        begin: where at the earliest the completion's values stand.
    """
    taken = _Taken(text)

    def take(said: str, value: _Value) -> bool:
        return taken.take(said, 0 if value.where == "prompt" else begin)

    # of two that are alike the completion's takes its place first
    pieces: list[_Value] = []
    for value in sorted(values, key=lambda one: one.where == "prompt"):
        if value.what != "content" or not TAG.search(value.text):
            pieces.append(value)
        elif not take(value.text, value):
            pieces += _pieces(value)
    found: list[_Fate] = []
    left: list[_Value] = []
    for piece in sorted(pieces, key=lambda one: -len(one.text.strip())):
        if take(piece.text, piece):
            continue
        if not any(take(spelled, piece) for spelled in _spellings(piece.text.strip())):
            left.append(piece)
        elif piece.what != "thoughts" and not any(s in text for s in _spellings(piece.text)):
            found.append(("changed", piece._replace(what="spaces")))
    for piece in left:
        fate = taken.fate(piece.text)
        spaces = fate == "spaces"
        found.append(("changed", piece._replace(what=fate)) if spaces else (fate, piece))
    return found


def _pieces(value: _Value) -> Iterator[_Value]:
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


def _spellings(said: str) -> Iterator[str]:
    """A text, and how JSON has it."""
    yield said
    for spelled in (json.dumps(said, ensure_ascii=False), json.dumps(said)):
        if spelled[1:-1] != said:
            yield spelled[1:-1]


def _repeated(
    values: Iterable[_Value], every: Sequence[_Value], text: str, row: PreferenceRow
) -> Iterator[_Fate]:
    """Values that are more often in the text than among those that it holds."""
    for value in values:
        said = value.text.strip()
        if len(said) < LEAST_REPEATED or text.count(said) < 2:
            continue
        texts = [*(other.text for other in every), json.dumps(row.tools, ensure_ascii=False)]
        if text.count(said) > sum(other.count(said) for other in texts):
            yield "repeated", value


def _shown(said: str) -> str:
    said = " ".join(said[: 4 * SHOWN].split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN].rstrip()}…"


# What becomes of it


def check_completions(
    row: PreferenceRow, lost: Iterable[Loss], tokenizer: PreTrainedTokenizerBase
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
    row: PreferenceRow, lost: Iterable[Loss], tokenizer: PreTrainedTokenizerBase
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
