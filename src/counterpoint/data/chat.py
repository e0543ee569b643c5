"""Conversations become text through the tokenizer's chat template; text stays as it is.

A template is a stranger's program: what it may take is bounded (``bounds``).

Not here: tokens. Where the prompt ends is decided in token space (``tokenize``), so the three
strings of a row need not be prefixes of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.data.bounds import OutOfTime, bounded_time
from counterpoint.errors import DataError, SetupError
from counterpoint.preference_row import Message, PreferenceRow, Text

MOST_SECONDS = 10.0
"""Of computing, for one text; an ordinary template takes a millisecond."""

MOST_RENDERED = 2**24
"""Characters of one text."""

MOST_SHOWN = 300
"""Characters of a template's own error."""

MARK, SPACE = "CONTINUED_FROM_HERE", "\t "
"""Written after a turn that is to be continued, so as to find the place, and to see whether the
template takes white space away there."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
"""Fields in which messages hold their thoughts, apart from their content."""

OF_THE_MACHINE = (ImportError, OSError, SystemError)
"""Errors that say nothing about the row: elsewhere, or tomorrow, it may well be rendered."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The three texts of a row.

    Args:
        prompt: the prompt alone, up to where the assistant begins to speak.
        chosen: the prompt followed by the chosen completion.
        rejected: the prompt followed by the rejected completion.
    """

    prompt: str
    chosen: str
    rejected: str


def render(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Write a row as text.

    A prompt that ends inside an assistant's turn is left open, and the completions continue that
    turn; after any other prompt the template opens one (its generation prompt).

    Args:
        row: text, or messages for the template.
        tokenizer: its ``chat_template`` renders messages; unused for text.

    Returns:
        The prompt alone and with each completion.

    Raises:
        DataError: CP202 for text that is not Unicode; CP208 without a chat template; CP213 if
            the template refuses the row or renders both completions the same; CP217 if it takes
            too long or makes too much of it; CP221 for a turn that cannot be continued; CP222 for
            a machine that could not render it.
        SetupError: CP502 for a package that rendering needs.
    """
    if isinstance(row.prompt, str):
        rendered = Rendered(row.prompt, f"{row.prompt}{row.chosen}", f"{row.prompt}{row.rejected}")
    elif is_prefilled(row.prompt):
        rendered = _with_continuations(row, row.prompt, tokenizer)
    else:
        rendered = Rendered(
            render_prompt(row, tokenizer),
            apply_template(row, [*row.prompt, *row.chosen], tokenizer),
            apply_template(row, [*row.prompt, *row.rejected], tokenizer),
        )
    if rendered.chosen == rendered.rejected:
        raise DataError(
            "CP213",
            f"row {row.row}: the chat template renders chosen and rejected as the same text, so "
            "it leaves out what sets them apart. Use a template that shows it.",
        )
    _check_unicode(rendered, row.row)
    return rendered


def render_prompt(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt of a row as text, up to where the assistant begins or continues to speak.

    Args:
        row: of its completions no more is looked at than whether they continue a thought.
        tokenizer: as for ``render``.

    Raises:
        DataError: CP208, CP213, CP217, CP221 and CP222, as for ``render``.
        SetupError: CP502, likewise.
    """
    if isinstance(row.prompt, str):
        return row.prompt
    if is_prefilled(row.prompt):
        return _opening(row, row.prompt, tokenizer).prompt
    return apply_template(row, row.prompt, tokenizer, add_generation_prompt=True)


def closing_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's turn; "" where it cannot be told.

    Args:
        tokenizer: with or without a template.
    """
    asked, said = ({"role": role, "content": "Hello"} for role in ("user", "assistant"))
    row = PreferenceRow([asked, said], "", "", 0)
    try:
        return _opening(row, [asked, said], tokenizer).closing
    except (DataError, SetupError):  # no template, or one that refuses such a turn
        return ""


# A turn that the prompt begins and the completions continue


def is_prefilled(prompt: Text) -> bool:
    """Whether a prompt of messages ends inside an assistant's turn.

    A turn that called tools is over: nothing can be said in it after the calls.
    """
    if isinstance(prompt, str):
        return False
    return bool(prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls"))


def conversations(row: PreferenceRow) -> tuple[list[Message], list[Message], list[Message]]:
    """The messages of a row: those before its completions, chosen and rejected.

    A turn that the prompt begins is part of both completions, whole.

    Raises:
        DataError: CP221, as for ``render``.
    """
    prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
    assert not isinstance(prompt, str)
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if not is_prefilled(prompt):
        return prompt, chosen, rejected
    begun = prompt[-1]
    good, bad = (
        [_merged(begun, side[0], row.row, field), *side[1:]]
        for field, side in (("chosen", chosen), ("rejected", rejected))
    )
    return prompt[:-1], good, bad


@dataclass(frozen=True, slots=True)
class _Opening:
    """A prompt that ends inside a turn.

    Args:
        prompt: the text up to where the turn is continued.
        spaces: white space at the end of what was begun, which the template takes away there; it
            stands between the two parts all the same.
        closing: what the template writes after the turn.
    """

    prompt: str
    spaces: str
    closing: str


def _opening(
    row: PreferenceRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase
) -> _Opening:
    """Where the last turn is continued: found by a mark at its end, as transformers does it."""
    begun, field = prompt[-1], _continued_field(row, prompt[-1])
    text = _text(begun.get(field))
    marked = {**begun, field: _joined(begun.get(field), f"{MARK}{SPACE}")}
    before, mark, after = apply_template(row, [*prompt[:-1], marked], tokenizer).rpartition(MARK)
    if not mark:
        raise DataError(
            "CP221",
            f"row {row.row}: the prompt ends with an assistant's turn that the completions "
            f"continue, but the chat template leaves out its {field}. Use a template that writes "
            "it, or move the text to the completions.",
        )
    if after.startswith(SPACE):
        return _Opening(before, "", after[len(SPACE) :])
    spaces = text[len(text.rstrip()) :]
    if not before.endswith(spaces):
        spaces = ""
    return _Opening(before[: len(before) - len(spaces)], spaces, after)


def _continued_field(row: PreferenceRow, begun: Message) -> str:
    """The field in which a turn is continued: its content, or a thought that is not over yet."""
    name = thought_name(begun)
    if name is None or _text(begun.get("content")).strip():
        return "content"
    answers = [*row.chosen[:1], *row.rejected[:1]]
    thinks = [thought_name(each) for each in answers if isinstance(each, dict)]
    return name if any(thinks) or not thinks else "content"


def _with_continuations(
    row: PreferenceRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    opening = _opening(row, prompt, tokenizer)
    sides = []
    for field, side in (("chosen", row.chosen), ("rejected", row.rejected)):
        assert not isinstance(side, str)
        turn = _merged(prompt[-1], side[0], row.row, field)
        text = apply_template(row, [*prompt[:-1], turn, *side[1:]], tokenizer)
        if not text.startswith(opening.prompt) and _is_plain(side):
            # the template makes something else of the whole turn than of its beginning; a model
            # that continues it is asked nothing, and neither is the template then
            content = _text(side[0]["content"])
            text = f"{opening.prompt}{opening.spaces}{content}{opening.closing}"
        sides.append(text)
    return Rendered(opening.prompt, *sides)


def _merged(begun: Message, answer: Message, row: int, field: str) -> Message:
    """One turn of its beginning and its continuation."""
    merged = {**begun, **answer, "content": _joined(begun.get("content"), answer.get("content"))}
    before, after = thought_name(begun), thought_name(answer)
    if after is None:
        return merged
    if _text(begun.get("content")).strip():
        raise DataError(
            "CP221",
            f"row {row}, field {field}: continues the content of the prompt's last turn, but has a "
            f"{after} that would stand before it. Leave it out, or move it to the prompt.",
        )
    if before is not None:
        del merged[after]
        merged[before] = f"{begun[before]}{answer[after]}"
    return merged


def _is_plain(side: list[Message]) -> bool:
    """Whether a completion is one turn of nothing but content."""
    return len(side) == 1 and not side[0].get("tool_calls") and thought_name(side[0]) is None


def thought_name(message: Message) -> str | None:
    """The field that holds a message's thoughts, apart from its content; None without any."""
    return next((n for n in THOUGHTS if isinstance(message.get(n), str) and message[n]), None)


def _joined(begun: Any, rest: Any) -> Any:
    """Two contents as one, nothing between them; each is text, a list of parts of text or None."""
    if isinstance(begun, list) or isinstance(rest, list):
        before, after = _parts(begun), _parts(rest)
        if before and after:
            text = f"{before[-1]['text']}{after[0]['text']}"
            return [*before[:-1], {**before[-1], "text": text}, *after[1:]]
        return before or after
    return f"{begun or ''}{rest or ''}"


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _check_unicode(rendered: Rendered, row: int) -> None:
    """JSON can spell half a surrogate pair; no tokenizer takes one."""
    try:
        f"{rendered.chosen}{rendered.rejected}".encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        text = f"row {row} holds {half}, half of a character. Remove it from the text."
        raise DataError("CP202", text) from error


def apply_template(
    row: PreferenceRow, messages: list[Message], tokenizer: PreTrainedTokenizerBase, **ending: bool
) -> str:
    """Messages as text, with the tools and arguments of a row; the template is bounded.

    Args:
        row: whose tools and arguments count, and whose number is said in errors.
        messages: to be rendered.
        tokenizer: its ``chat_template`` renders.
        ending: such as ``add_generation_prompt``.

    Raises:
        DataError: CP208, CP213, CP217 and CP222, as for ``render``.
        SetupError: CP502, likewise.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "CP208",
            f"row {row.row} holds messages, but the tokenizer has no chat template. Set "
            "tokenizer.chat_template, use the model's instruction-tuned tokenizer, or give "
            "prompt, chosen and rejected as text.",
        )
    options: dict[str, Any] = {**(row.template_kwargs or {}), **ending}
    try:
        with bounded_time(MOST_SECONDS):
            text = tokenizer.apply_chat_template(
                messages, tools=row.tools, tokenize=False, **options
            )
    except OutOfTime as error:
        raise _cut_short(
            row, f"was not done after {MOST_SECONDS:g} seconds of computing"
        ) from error
    except MemoryError as error:
        raise _cut_short(row, "wants more memory than there should be in a text") from error
    except RecursionError as error:  # rows are not nested so deeply (``cells.check_depth``)
        raise _cut_short(row, "calls itself without end") from error
    except Exception as error:  # a template is a program of the model's author: anything goes
        raise _failed(row, messages, error) from error
    if len(text) > MOST_RENDERED:
        raise _cut_short(row, f"makes {len(text):,} characters of it")
    return str(text)


def _failed(
    row: PreferenceRow, messages: list[Message], error: Exception
) -> DataError | SetupError:
    """Whose fault it is: the row's and the template's, or that of the machine."""
    said = f"{type(error).__name__}: {_shortened(error)}"
    # a jinja error of its own, TemplateNotFound, is an OSError too
    ours = type(error).__module__.startswith("jinja2")
    if ours or not isinstance(error, OF_THE_MACHINE):
        roles = ", ".join(str(message["role"]) for message in messages)
        return DataError(
            "CP213",
            f"row {row.row}: the chat template fails on turns of role {roles}: {said}. Change the "
            "row or the template.",
        )
    if isinstance(error, ImportError):
        return SetupError("CP502", f"no chat template can be rendered here: {said}")
    return DataError(
        "CP222",
        f"row {row.row} could not be rendered on this machine: {said}. The row may well be in "
        "order: try again, with more memory or fewer processes.",
    )


def _shortened(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _cut_short(row: PreferenceRow, what: str) -> DataError:
    return DataError(
        "CP217",
        f"row {row.row}: the chat template {what}, and was stopped. It is a program that came with "
        "the tokenizer: look at it before you go on, or give another with chat_template.",
    )
