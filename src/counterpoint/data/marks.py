"""Where a row's pictures stand: in which turn of its prompt, and before which words.

1. Marks are parts of messages of a type of ``cells.PICTURES``, and ``<image>`` in text. A part may
   hold its own picture; every other mark takes the column's next.
2. Without any mark, the column's pictures stand before the first words of the user.
3. A prompt with pictures becomes messages, a mark ``{"type": "image"}`` for each; so does that of
   every row of a set with a column of pictures, so that all its rows are written in one way.
4. For a model that sees none, a row with pictures is refused, in whatever column they are.

Not here: cells and files (``pictures``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from counterpoint.data.cells import fail, read_messages
from counterpoint.data.pictures import (
    COLUMNS,
    PATHS,
    PictureCell,
    column_pictures,
    is_picture_part,
    looks_like_picture,
    own_picture,
)
from counterpoint.data.plain import plain
from counterpoint.preference_row import PARTS, Message, Text

PICTURE_COLUMNS = (*COLUMNS, *PATHS)
"""Columns of pictures, or of where they lie."""

SOUNDS = ("audio", "audios", "video", "videos")
"""Columns of what no model here can hear or see; a row with something in one is refused."""

PROMPTS = ("prompt", "conversations", "instruction", "messages")
"""Columns of prompts, in the order in which they are looked for."""

MARK = "<image>"
"""What stands for a picture in text."""

OF_PART = ".image"
"""What follows a column's name in the field of a picture that a part of its messages holds."""


def refuse_unseen(raw: Mapping[str, Any], row: int, *, seeing: bool) -> None:
    """Refuse what the model cannot see or hear, in whatever column it stands.

    Args:
        raw: the row's filled cells.
        row: its number.
        seeing: whether the model sees pictures.

    Raises:
        DataError: CP219.
    """
    others = [name for name, value in raw.items() if looks_like_picture(value)]
    for field in SOUNDS if seeing else (*PICTURE_COLUMNS, *SOUNDS, *others):
        value = raw.get(field, [])
        if any(one not in (None, "") for one in (value if isinstance(value, list) else [value])):
            _fail_unseen(row, field)


def _fail_unseen(row: int, field: str) -> NoReturn:
    fail(
        "CP219",
        row,
        field,
        "holds what a text model cannot see, and the answers would be trained without it. Remove "
        "such rows, or the column if the answers do not need it.",
    )


def question_as_prompt(raw: dict[str, Any]) -> None:
    """Sets of questions about pictures, such as RLAIF-V, have the prompt in a column of that name.

    Args:
        raw: the row's filled cells; a prompt is added.
    """
    if isinstance(raw.get("question"), str) and not set(PROMPTS) & set(raw):
        raw["prompt"] = raw["question"]


def with_pictures(
    raw: Mapping[str, Any],
    parts: tuple[Text, Text, Text],
    row: int,
    given: Mapping[str, Any] | None,
) -> tuple[Text, Text, Text, list[PictureCell]]:
    """Prompt and completions, the pictures' places in the prompt, and the pictures.

    Args:
        raw: the row's filled cells.
        parts: prompt, chosen and rejected.
        row: its number.
        given: the cells as they came; None: for a model that sees no pictures.

    Raises:
        DataError: CP219 for pictures that it does not see; CP228 for marks and pictures that do
            not agree, and for a completion with a picture.
    """
    if given is None:
        for field, part in zip(PARTS, parts, strict=True):
            if not isinstance(part, str) and any(map(pictured, part)):
                _fail_unseen(row, field)
        return *parts, []
    prompt, chosen, rejected = parts
    if isinstance(prompt, str):
        if not _has_column(given) and not any(MARK in part for part in parts):
            return *parts, []
        prompt = [{"role": "user", "content": prompt}]
    turns, cells = placed(prompt, _origin(raw), raw, row)
    sides = []
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        # a prompt alone has no completions
        said = [{"role": "assistant", "content": side}] if isinstance(side, str) else side
        _refuse_in_completion(said, row, field)
        sides.append(said)
    return turns, sides[0], sides[1], cells


def _has_column(given: Mapping[str, Any]) -> bool:
    """Whether a set has a column of pictures, be this row's empty."""
    return any(name in PICTURE_COLUMNS or looks_like_picture(cell) for name, cell in given.items())


def _origin(raw: Mapping[str, Any]) -> str:
    """The column that a row's prompt is read from."""
    chosen = raw.get("chosen")
    if not isinstance(chosen, str | None) and not is_answer(read_messages(chosen, 0, "chosen")):
        return "chosen"
    return next((name for name in PROMPTS if name in raw), "chosen")


def is_answer(messages: Sequence[Message]) -> bool:
    """Whether messages begin with the assistant's turn, so that no prompt is among them."""
    return messages[0]["role"] not in ("system", "developer", "user")


def placed(
    prompt: Sequence[Message], origin: str, raw: Mapping[str, Any], row: int
) -> tuple[list[Message], list[PictureCell]]:
    """A prompt whose marks are parts ``{"type": "image"}``, and the picture of each.

    Args:
        prompt: messages.
        origin: the column that they come from.
        raw: the row's cells.
        row: its number.

    Raises:
        DataError: CP228 where marks and pictures are not as many.
    """
    column = column_pictures(raw, row)
    turns = [{**turn, "content": _parted(turn.get("content"))} for turn in prompt]
    turns = [
        turn if any(map(is_picture_part, turn["content"])) else given
        for turn, given in zip(turns, prompt, strict=True)
    ]
    parts = [part for turn in turns for part in pictured(turn)]
    if column and not parts:
        turns, parts = _before_words(turns, len(column), row, column[0].field)
    owned = [own_picture(part) for part in parts]
    asking = sum(own is None for own in owned)
    if asking != len(column):
        marks = f"{asking} mark{'' if asking == 1 else 's'} of pictures"
        beside = f"the row has {len(column)} beside {'it' if asking == 1 else 'them'}"
        fail("CP228", row, origin, f"has {marks}, and {beside}. Give each mark one picture.")
    rest = iter(column)
    cells = [
        next(rest) if own is None else PictureCell(f"{origin}{OF_PART}[{n}]", own)
        for n, own in enumerate(owned)
    ]
    return [_bare(turn) for turn in turns], cells


def _parted(content: Any) -> list[Any]:
    """A content as parts, a mark in text being one."""
    if isinstance(content, list):
        return [new for part in content for new in _split(part)]
    return [*_split({"type": "text", "text": content})] if content else []


def _split(part: Any) -> Iterator[Any]:
    if is_picture_part(part) or MARK not in part["text"]:
        yield part
        return
    for n, text in enumerate(part["text"].split(MARK)):
        if n:
            yield {"type": "image"}
        if text:
            yield {**part, "text": text}


def pictured(turn: Message) -> list[Any]:
    """The parts of a turn that are pictures."""
    content = turn.get("content")
    return [*filter(is_picture_part, content)] if isinstance(content, list) else []


def _bare(turn: Message) -> Message:
    """A turn whose pictures are places alone."""
    if not pictured(turn):
        return turn
    parts = turn["content"]
    return {**turn, "content": [{"type": "image"} if is_picture_part(p) else p for p in parts]}


def _before_words(
    turns: list[Message], pictures: int, row: int, field: str
) -> tuple[list[Message], list[Any]]:
    """The same turns, a mark for each picture before the first words of the user."""
    first = next((n for n, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        fail("CP228", row, field, "holds pictures, but no turn of a user in which they stand.")
    marks: list[Any] = [{"type": "image"} for _ in range(pictures)]
    asked = {**turns[first], "content": [*marks, *_parted(turns[first].get("content"))]}
    return [*turns[:first], asked, *turns[first + 1 :]], marks


def _refuse_in_completion(completion: Sequence[Message], row: int, field: str) -> None:
    """Refuse a completion that holds a picture, or the mark of one."""
    if any(map(is_picture_part, (p for turn in completion for p in _parted(turn.get("content"))))):
        fail(
            "CP228",
            row,
            field,
            f"holds a picture or its mark {MARK}, and pictures stand in prompts only: a model "
            "writes none. Take it out, or remove the row.",
        )


def cell_at(raw: Mapping[str, Any], field: str, row: int) -> Any:
    """What stands in a raw row where a ``PictureCell`` was found.

    Args:
        raw: the row's cells.
        field: of the cell.
        row: its number.
    """
    column = column_of(field, raw)
    if column == field:
        return plain(raw[field])
    place = int(field[field.rindex("[") + 1 : -1])
    if field != f"{column}{OF_PART}[{place}]":
        return plain(raw[column])[place]
    turns = read_messages(plain(raw[column]), row, column)
    parts = [p for turn in turns for p in filter(is_picture_part, _parted(turn.get("content")))]
    return own_picture(parts[place])


def column_of(field: str, columns: Iterable[str]) -> str:
    """The column in which a ``PictureCell`` was found.

    Args:
        field: of the cell.
        columns: of the raw row, that one among them.
    """
    return max((name for name in columns if _is_in(field, name)), key=len)


def _is_in(field: str, column: str) -> bool:
    rest = field.removeprefix(column)
    return field.startswith(column) and (not rest or rest.startswith(("[", f"{OF_PART}[")))
