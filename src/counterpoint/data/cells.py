"""Cells of a raw row become text, messages, tools and numbers, or an error naming row and field.

Messages come as ``role``/``content`` or as ShareGPT's ``from``/``value``, alone or in lists. Text
is text, whatever it spells; only a column that cannot be text is read from one.

Not here: which column means what (``formats``), lists that a CSV file had to write as text
(``csv_columns``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NoReturn

from counterpoint.data.literals import MOST_CHARACTERS, MOST_NESTED, LiteralError, read_value
from counterpoint.errors import DataError
from counterpoint.preference_row import Message, PreferenceRow, Text

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Names of speakers in ShareGPT-shaped data -> the roles that chat templates know."""

SPEAKERS = {"system", "developer", "user", "assistant", "tool", "function", "model", *ROLES}
"""Who speaks in messages; where nobody of these does, an object with such keys is an answer."""

PICTURES = ("image", "image_url", "input_image")
"""Types of the parts of a message that are pictures."""

_BRACKET = re.compile(r"\s*+[\[{(]")
_SPOKEN = re.compile(rf"""['"](?:role|from)['"]\s*+:\s*+['"](?:{"|".join(sorted(SPEAKERS))})['"]""")


def fail(code: str, row: int, field: str, text: str) -> NoReturn:
    """Refuse a row.

    Args:
        code: a CP2xx code.
        row: the row's number.
        field: the column, with the place in it: "chosen[1]".
        text: what was seen and what to do, continuing "field chosen: ".

    Raises:
        DataError: always.
    """
    raise DataError(code, f"row {row}, field {field}: {text}")


def fail_type(value: Any, row: int, field: str, expected: str) -> NoReturn:
    """Refuse a cell of another type than ``expected`` names: CP202."""
    fail("CP202", row, field, f"is of type {type(value).__name__}; expected {expected}.")


def check_size(raw: Mapping[str, Any], row: int) -> None:
    """Refuse a row whose texts are longer than ``MOST_CHARACTERS``, before any of it is read.

    Raises:
        DataError: CP216.
    """
    size, left = 0, [cell for name, cell in raw.items() if not _is_picture(name, cell)]
    while left and size <= MOST_CHARACTERS:  # no recursion: a row may be nested to any depth
        value = left.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Mapping):
            left += (cell for name, cell in value.items() if not _is_picture(name, cell))
        elif isinstance(value, list | tuple):
            left += value
    if size > MOST_CHARACTERS:
        raise DataError(
            "CP216",
            f"row {row} holds more than {MOST_CHARACTERS:,} characters; no model reads so long a "
            "text. Cut or remove the row.",
        )


def _is_picture(name: Any, cell: Any) -> bool:
    """Whether a text is the bytes of a picture, which has a bound of its own."""
    return (
        name in ("image", "image_url", "url") and isinstance(cell, str) and cell.startswith("data:")
    )


def check_depth(values: Iterable[Any], row: int) -> None:
    """Refuse what is nested deeper than ``MOST_NESTED``, in JSON text too, once it has been read.

    How deep that is is a number of ours: what Python stands depends on who called it, and a row
    that one run refuses another must refuse as well.

    Raises:
        DataError: CP202.
    """
    level = list(values)
    for _ in range(MOST_NESTED):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
        level = inner
    if level:
        raise DataError("CP202", f"row {row}: values are nested too deeply. Remove the row.")


def read_text(value: Any, row: int, field: str) -> Text:
    """Read a cell that is text or messages.

    Args:
        value: the cell.
        row: the row's number, for errors.
        field: the column's name, for errors.

    Returns:
        A string as it is; one message or several as a list of messages.

    Raises:
        DataError: CP202 for null, other types, and messages that are none.
    """
    if isinstance(value, str):
        return value
    if value is None:
        fail("CP202", row, field, "is null; expected text or messages.")
    return read_messages(value, row, field)


def spells_messages(text: str) -> bool:
    """Whether a text looks like messages, well written or not: JSON, Python's repr or numpy's."""
    return _BRACKET.match(text) is not None and _SPOKEN.search(text) is not None


def row_spells_messages(row: PreferenceRow) -> bool:
    """Whether a text of a row does, or the text of a turn that is all of a side."""
    for side in (row.prompt, row.chosen, row.rejected):
        text = side if isinstance(side, str) else side[-1].get("content")
        if isinstance(text, str) and spells_messages(text):
            return True
    return False


def read_messages(value: Any, row: int, field: str) -> list[Message]:
    """Read a cell that must be messages, or text that spells them; see ``read_text``."""
    read = value
    if isinstance(value, str):
        try:
            read = read_value(value)
        except LiteralError as error:
            fail("CP202", row, field, f"is text that spells no messages: {error}.")
    turns = [read] if isinstance(read, Mapping) else read
    if not isinstance(turns, list | tuple):
        fail_type(value, row, field, "text or messages")
    if not turns:
        fail("CP202", row, field, "is an empty list; expected at least one message.")
    return [_message(turn, row, f"{field}[{n}]") for n, turn in enumerate(turns)]


def _message(turn: Any, row: int, field: str) -> Message:
    """One message with ``role`` and ``content``, without the nulls that Arrow adds."""
    if not isinstance(turn, Mapping):
        fail_type(turn, row, field, "a message")
    message = _without_nulls(turn)
    names, other = ("role", "content"), ("from", "value")
    if "role" not in message and "from" in message:
        names, other = other, names
    role, content = (message.pop(name, None) for name in names)
    for name in other:
        message.pop(name, None)
    if not isinstance(role, str):
        fail("CP202", row, field, "has no role; expected role and content, or from and value.")
    if role == "function_call" and isinstance(content, str):
        calls = _function_calls(content)
        if calls:
            return {"role": "assistant", "content": "", "tool_calls": calls, **message}
    if content is None:
        if not message.get("tool_calls"):
            fail("CP202", row, field, "has no content.")
        return {"role": ROLES.get(role, role), **message}
    _check_content(content, row, field)
    return {"role": ROLES.get(role, role), "content": content, **message}


def _check_content(content: Any, row: int, field: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        kind = type(content).__name__
        fail("CP202", row, field, f"has content of type {kind}; expected text.")
    for part in content:
        seen = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if seen in PICTURES:
            continue
        if seen != "text" or not isinstance(part.get("text"), str):
            only = "only text and pictures can be trained on yet"
            fail("CP202", row, field, f"has a part of type {seen!r}; {only}.")


def _function_calls(text: str) -> list[Message]:
    """ShareGPT's JSON of one or more calls as ``tool_calls``; empty if it is something else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return []
    return [
        {
            "type": "function",
            "function": {"name": c["name"], "arguments": c.get("arguments", {})},
        }
        for c in calls
    ]


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct the keys of all structs, as nulls; templates must not see them."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(v) for v in value]
    return value


def read_tools(raw: Mapping[str, Any], row: int) -> list[Any] | None:
    """Tool schemas of the column ``tools``, a list or its JSON text; None where there are none.

    Raises:
        DataError: CP202 for anything else.
    """
    tools = _decoded(raw.get("tools"), row, "tools")
    if tools is None or tools in ([], {}):
        return None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        fail("CP202", row, "tools", "should be a list of tool schemas, or that list as JSON.")
    return tools


def read_template_kwargs(raw: Mapping[str, Any], row: int) -> dict[str, Any] | None:
    """The column ``chat_template_kwargs``, an object or its JSON text; None where there is none.

    Raises:
        DataError: CP202 for anything else.
    """
    kwargs = _decoded(raw.get("chat_template_kwargs"), row, "chat_template_kwargs")
    if not kwargs:
        return None
    if not isinstance(kwargs, dict):
        fail("CP202", row, "chat_template_kwargs", "should be an object of named arguments.")
    return kwargs


def _decoded(value: Any, row: int, field: str) -> Any:
    if not isinstance(value, str):
        return _without_nulls(value)
    if value.strip() in ("", "null"):
        return None
    try:
        return read_value(value)
    except LiteralError as error:
        fail("CP202", row, field, f"is text that spells no value: {error}.")


def read_number(raw: Mapping[str, Any], field: str, default: float, row: int) -> float:
    """A finite number, not negative if it is a weight; ``default`` where there is none.

    Raises:
        DataError: CP212 for anything else.
    """
    value = raw.get(field)
    if value is None:
        return default
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        fail("CP212", row, field, f"is {value!r}; expected a finite number in every row.")
    if field == "weight" and value < 0:
        fail("CP212", row, field, f"is {value!r}; a weight is at least 0.")
    return float(value)
