"""Raw rows of every accepted shape become one shape, ``PreferenceRow``.

Accepted, each with text or with messages (``role``/``content`` or ShareGPT's ``from``/``value``):

1. ``prompt``, ``chosen``, ``rejected``;
2. ``chosen``, ``rejected`` as whole dialogues, the prompt being what they share;
3. ``conversations`` (or ``messages``) as the prompt, ``chosen``, ``rejected`` as its last turn;
4. ``instruction``, ``input``, ``history`` with ``chosen``, ``rejected`` or with a list
   ``output`` of the better and the worse.

``system``, ``tools``, ``chat_template_kwargs``, ``source_lang``, ``target_lang``, ``weight`` and
``margin`` are read where present. A null is a missing
column, row by row: rows of all these shapes may stand in one set.

Not here: where the prompt ends in sides that hold it (``shared_prompt``), rendering messages to
text (``chat``), and anything that needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from counterpoint.data.cells import (
    check_depth,
    check_size,
    fail,
    fail_type,
    read_messages,
    read_number,
    read_template_kwargs,
    read_text,
    read_tools,
)
from counterpoint.data.marks import (
    PICTURE_COLUMNS,
    SOUNDS,
    is_answer,
    question_as_prompt,
    refuse_unseen,
    with_pictures,
)
from counterpoint.data.pictures import (
    PictureCell,
    PictureRules,
    is_of_pictures,
    looks_like_picture,
    opened,
)
from counterpoint.data.plain import is_missing, plain
from counterpoint.data.said_lists import LISTED, place_in_list, refuse_unusable_lists, saying_place
from counterpoint.data.shapes import OF_SHAPES, has_shape, in_known_shape
from counterpoint.data.shared_prompt import (
    LIKELY_PROMPTS,
    begun_in,
    continuation,
    is_transcript,
    split_messages,
    split_text,
)
from counterpoint.errors import DataError
from counterpoint.preference_row import GOLD_COLUMNS, Message, PreferenceRow, Text

LANGUAGES = ("source_lang", "target_lang")
"""Columns that only an encoder-decoder of many languages makes use of."""

COLUMNS = (
    *PICTURE_COLUMNS,
    *SOUNDS,
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "messages",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "chat_template_kwargs",
    "weight",
    "margin",
)
"""Every column that can have a meaning; all others are ignored."""

NUMBERS = ("weight", "margin")
"""Columns of numbers, where NaN is no absence."""

READ = frozenset({*COLUMNS, *LANGUAGES, *LIKELY_PROMPTS, *OF_SHAPES, *GOLD_COLUMNS, LISTED})
"""Every column that this module looks at by its name; of the others those that hold pictures."""

SHAPES = (
    "Accepted are prompt + chosen + rejected, chosen + rejected with a shared beginning, "
    "conversations + chosen + rejected, and instruction + chosen + rejected"
)


def to_preference_row(
    raw: Mapping[str, Any], row: int, pictures: PictureRules | None = None
) -> PreferenceRow:
    """Read one raw row.

    Args:
        raw: the row's cells by column; columns outside ``READ`` that hold no picture are ignored.
        row: its number in the data set, from 0, named in every error.
        pictures: which ones may be opened; None: for a model that sees none, so that a row with
            one is refused.

    Returns:
        The row, its prompt explicit, both completions not blank and not equal.

    Raises:
        DataError: CP201 a column is missing; CP202 a cell is null or of a wrong type; CP203 a
            blank completion; CP205 equal completions; CP206 differing or absent prompts; CP207
            a completion that does not end with the assistant; CP212 an unusable number; CP216 a
            row too large to be one; CP219 what the model cannot see; CP228 to CP231 pictures that
            do not fit the row or cannot be opened; CP233 and CP234 unusable lists; CP239 equals.
    """
    return opened(*read_unopened(raw, row, pictures is not None), pictures)


def pictures_in(raw: Mapping[str, Any], row: int) -> list[PictureCell]:
    """The pictures of a raw row, none of them opened, in the order of their marks.

    Args:
        raw: the row's cells by column.
        row: its number.

    Raises:
        DataError: for a row that is no preference.
    """
    return read_unopened(raw, row, seeing=True)[1]


_Read = tuple[PreferenceRow, list[PictureCell]]


def read_unopened(raw: Mapping[str, Any], row: int, seeing: bool) -> _Read:
    """A row without its pictures, and these, none opened; as for ``to_preference_row``."""
    try:
        with saying_place(raw):
            return _to_preference_row(raw, row, seeing)
    except RecursionError as error:
        text = f"row {row}: values are nested too deeply. Remove the row."
        raise DataError("CP202", text) from error


def _to_preference_row(given: Mapping[str, Any], row: int, seeing: bool) -> _Read:
    raw = filled_cells(given)
    check_size(raw, row)
    refuse_unseen(raw, row, seeing=seeing)
    refuse_unusable_lists(raw, row)
    raw = dict(in_known_shape(raw, row))
    if seeing:
        question_as_prompt(raw)
    chosen, rejected = _sides(raw, row, given)
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(side, str) and not side.strip():
            fail("CP203", row, field, "is blank. Remove the row.")
    if chosen == rejected:
        fail(
            "CP205",
            row,
            "chosen",
            "equals field rejected, so there is nothing to prefer. Remove the row.",
        )
    _check_system(raw, row)
    prompt, chosen, rejected = _split(raw, chosen, rejected, row)
    prompt, chosen, rejected, cells = with_pictures(
        raw, (prompt, chosen, rejected), row, given if seeing else None
    )
    _check_completion(chosen, row, "chosen")
    _check_completion(rejected, row, "rejected")
    tools, template_kwargs = read_tools(raw, row), read_template_kwargs(raw, row)
    if isinstance(prompt, str):
        beside = {"system": raw.get("system"), "tools": tools}
        _refuse_beside_text({**beside, "chat_template_kwargs": template_kwargs}, row)
    check_depth([prompt, chosen, rejected, tools, template_kwargs], row)
    listed = place_in_list(raw)
    read = PreferenceRow(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        row=row,
        tools=tools,
        template_kwargs=template_kwargs,
        weight=read_number(raw, "weight", 1.0, row) * (1.0 if listed is None else listed.share),
        margin=read_number(raw, "margin", 0.0, row),
        listed=listed,
        absent=tuple(name for name in (*NUMBERS, "prompt") if _is_absent(name, given, raw, prompt)),
        **_languages(raw),
    )
    return read, cells


def filled_cells(given: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that can have a meaning and hold something, as Python's own values."""
    cells = {
        name: plain(cell)
        for name, cell in given.items()
        if name in READ or looks_like_picture(cell)
    }
    return {
        name: cell
        for name, cell in cells.items()
        if cell is not None and (name in NUMBERS or not is_missing(cell))
    }


def _is_absent(name: str, given: Mapping[str, Any], raw: Mapping[str, Any], prompt: Text) -> bool:
    """Whether a column is there, a row has nothing in it, and something was made of that.

    A prompt that is part of each side is found there for sure, but where two plain texts part.
    """
    if name not in given or name in raw:
        return False
    if name in NUMBERS:
        return True
    return isinstance(prompt, str) and not is_transcript(str(raw.get("chosen")))


def to_prompt(
    raw: Mapping[str, Any], row: int, pictures: PictureRules | None = None
) -> PreferenceRow:
    """Read the prompt of a row alone, for a model to answer or to continue.

    Args:
        raw: the row's cells by column; ``chosen`` and ``rejected`` need not be among them.
        row: its number, named in every error.
        pictures: as for ``to_preference_row``.

    Returns:
        The row with tools and arguments of the template, its completions empty.

    Raises:
        DataError: CP201 for a row without a prompt; CP202 and CP216 as for ``to_preference_row``.
    """
    given, raw = raw, filled_cells(raw)
    check_size(raw, row)
    refuse_unseen(raw, row, seeing=pictures is not None)
    if pictures is not None:
        question_as_prompt(raw)
    _check_system(raw, row)
    prompt = _given_prompt(raw, row)
    if prompt is None:
        raise DataError("CP201", f"row {row} has no prompt; expected a column prompt.")
    prompt, _, _, cells = with_pictures(
        raw, (prompt, "", ""), row, None if pictures is None else given
    )
    tools, template_kwargs = read_tools(raw, row), read_template_kwargs(raw, row)
    check_depth([prompt, tools, template_kwargs], row)
    read = PreferenceRow(
        prompt, "", "", row, tools=tools, template_kwargs=template_kwargs, **_languages(raw)
    )
    return opened(read, cells, pictures)


def columns_read(dataset: Any) -> list[str]:
    """The columns of a ``Dataset`` that can change what becomes of a row: by name, and pictures."""
    kinds = dataset.features.items()
    return [name for name, kind in kinds if name in READ or is_of_pictures(kind)]


def check_columns(columns: Iterable[str], *, name: str) -> None:
    """Refuse a data set whose columns cannot hold preferences, before any row is read.

    Args:
        columns: the data set's column names.
        name: the data set's name, for the message.

    Raises:
        DataError: CP201, with the columns seen and, where one looks like it, what to rename.
    """
    seen = list(columns)
    if {"chosen", "rejected"} <= {*seen} or {"instruction", "output"} <= {*seen}:
        return
    if has_shape({*seen}):
        return
    missing = [column for column in ("chosen", "rejected") if column not in seen]
    raise DataError(
        "CP201",
        f"{name} has no column {' and no column '.join(missing)}; it has "
        f"{', '.join(seen) or 'none'}. {SHAPES}.{_renaming(seen)}",
    )


def _renaming(seen: list[str]) -> str:
    lowered = {column: column.lower() for column in seen}
    signs = {"chosen": ("chosen", "better", "win", "accept"), "rejected": ("reject", "lose")}
    likely = {
        target: [c for c, low in lowered.items() if any(word in low for word in words)]
        for target, words in signs.items()
    }
    if all(likely.values()) and not {"chosen", "rejected"} & set(seen):
        pairs = " and ".join(f"{found[0]} to {target}" for target, found in likely.items())
        return f" Perhaps rename {pairs}."
    if {"completion", "label"} <= set(seen):
        return " Rows of completion + label are unpaired; pair them by prompt first."
    if {"candidates", "responses", "completions"} & set(seen):
        return " Turn each row's candidates into pairs first: counterpoint pairs does that."
    return ""


# The two completions, and the prompt they answer


def _sides(raw: Mapping[str, Any], row: int, given: Mapping[str, Any]) -> tuple[Text, Text]:
    if "chosen" in raw and "rejected" in raw:
        return read_text(raw["chosen"], row, "chosen"), read_text(raw["rejected"], row, "rejected")
    if "instruction" in raw and isinstance(raw.get("output"), list | tuple):
        output = raw["output"]
        if len(output) != 2:
            fail("CP202", row, "output", f"holds {len(output)} answers instead of [best, worst].")
        return read_text(output[0], row, "output[0]"), read_text(output[1], row, "output[1]")
    for field in ("chosen", "rejected"):
        if field in given and field not in raw:
            fail("CP202", row, field, "is null; expected text or messages.")
    check_columns((c for c in given if c != "output"), name=f"row {row}")
    raise AssertionError("check_columns lets only rows with both sides pass")


def _split(
    raw: Mapping[str, Any], chosen: Text, rejected: Text, row: int
) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected, of one kind, nothing of the prompt left in the completions."""
    given = _given_prompt(raw, row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(given, list):
            turns = _assistant(chosen), _assistant(rejected)
            return given, *turns
        if given is not None and isinstance(raw.get("system"), str):
            # even where it is blank: rows of one set are to be written in one way
            asked = [{"role": "user", "content": given}]
            return _with_system(raw, asked), _assistant(chosen), _assistant(rejected)
        if given is not None:
            return given, chosen, rejected
        return split_text(raw, chosen, rejected, row)
    if isinstance(chosen, str) or isinstance(rejected, str):
        fail("CP202", row, "rejected", "and field chosen must both be text or both be messages.")
    whole = not (is_answer(chosen) and is_answer(rejected))
    if isinstance(given, list) and not whole:
        return given, chosen, rejected
    if isinstance(given, str) and not whole:
        return _with_system(raw, [{"role": "user", "content": given}]), chosen, rejected
    chosen, rejected = _with_system(raw, chosen), _with_system(raw, rejected)
    if isinstance(given, list) and begun_in(given, chosen) and begun_in(given, rejected):
        return given, continuation(given, chosen), continuation(given, rejected)
    if isinstance(given, list) and given != chosen[: len(given)]:
        fail(
            "CP206",
            row,
            "chosen",
            "is a whole conversation that does not begin with the prompt given beside it. Remove "
            "the prompt's column, or leave only the assistant's turns in chosen and rejected.",
        )
    return split_messages(chosen, rejected, row)


def _given_prompt(raw: Mapping[str, Any], row: int) -> Text | None:
    """The prompt that stands in a column of its own, if any."""
    if "prompt" in raw:
        text = read_text(raw["prompt"], row, "prompt")
        return _with_system(raw, text) if isinstance(text, list) else text
    if "conversations" in raw:
        return _with_system(raw, read_messages(raw["conversations"], row, "conversations"))
    if "instruction" in raw:
        return _instruction(raw, row)
    if isinstance(raw.get("messages"), list) and not _is_conversation(raw.get("chosen")):
        return _with_system(raw, read_messages(raw["messages"], row, "messages"))
    return None


def _languages(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its languages, as it is: most models make nothing of it."""
    return {field: raw.get(field) for field in LANGUAGES}


def _check_system(raw: Mapping[str, Any], row: int) -> None:
    system = raw.get("system", "")
    if not isinstance(system, str):
        fail_type(system, row, "system", "the text of a system turn")


def _refuse_beside_text(cells: Mapping[str, Any], row: int) -> None:
    """Refuse what only a chat template can show, where there are no messages to render."""
    for field, cell in cells.items():
        if cell:
            fail(
                "CP202",
                row,
                field,
                "is for conversations, and this row is plain text that no chat template renders. "
                "Write prompt, chosen and rejected as messages, or remove the column.",
            )


def _is_conversation(value: Any) -> bool:
    """Whether a raw cell is a conversation that could be whole: not a lone turn, not text."""
    return isinstance(value, list) and len(value) > 1


def _instruction(raw: Mapping[str, Any], row: int) -> list[Message]:
    messages: list[Message] = []
    for turn in raw.get("history") or []:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            fail("CP202", row, "history", "should be a list of [question, answer].")
        messages += [{"role": "user", "content": str(turn[0])}, *_assistant(str(turn[1]))]
    for field in ("instruction", "input"):
        if not isinstance(raw.get(field, ""), str):
            fail_type(raw[field], row, field, "text")
    asked = [raw["instruction"], raw.get("input")]
    messages.append({"role": "user", "content": "\n".join(part for part in asked if part)})
    return _with_system(raw, messages)


def _with_system(raw: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = raw.get("system")
    if not isinstance(system, str) or not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _check_completion(completion: Text, row: int, field: str) -> None:
    if isinstance(completion, str):
        if not completion.strip():
            fail("CP203", row, field, "is blank after the prompt. Remove the row.")
        return
    for number, message in ((0, completion[0]), (-1, completion[-1])):
        if message["role"] != "assistant":
            where = "begins" if number == 0 else "ends"
            fail(
                "CP207",
                row,
                field,
                f"{where} with a turn of role {message['role']!r} instead of 'assistant'.",
            )
    if _is_blank(completion[-1]):
        fail("CP203", row, field, "ends with a blank assistant turn. Remove the row.")


def _is_blank(message: Message) -> bool:
    content = message.get("content", "")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return not content.strip() and not message.get("tool_calls")
