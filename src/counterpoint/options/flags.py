"""Flags of the small commands: a dataclass says which there are, each field's help what it means.

They are written as ``train``'s are (``--min_gap 5``, ``--min-gap=5``, ``--overwrite``,
``--no_overwrite``) and read by the same table of types, but nothing slow is imported.

Not here: the options of ``train`` (``table``, ``arguments``).
"""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.options.coerce import FALSES, TRUES, coerce, expected, is_bool, is_list
from counterpoint.options.given import Given, Scalar, Setting

_WIDEST = 110
_INDENT = " " * 6


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Args:
        name: with underscores.
        hint: the annotation of its field.
        default: the value when it is not given.
        help: what it means.
        choices: the words allowed; empty where any value of the type is.
    """

    name: str
    hint: Any
    default: Any
    help: str
    choices: tuple[str, ...]


def flags_of(*kinds: type[Any]) -> dict[str, Flag]:
    """The flags that dataclasses describe, by name.

    A field's underscore at the end is no part of its flag: ``from_`` is ``--from``.
    """
    found = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for field in fields(kind):
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            meaning, choices = field.metadata["help"], field.metadata.get("choices", ())
            name = field.name.removesuffix("_")
            found[name] = Flag(name, hints[field.name], default, meaning, choices)
    return found


def take_flags(words: list[str], flags: Mapping[str, Flag]) -> tuple[dict[str, Any], list[str]]:
    """Read the flags among the words of a command line.

    Args:
        words: what follows the command.
        flags: those to read.

    Returns:
        Values by name, of flags that were given; and all other words as they came.

    Raises:
        ConfigError: CP102 or CP103 for a value that the flag does not take.
    """
    values: dict[str, Any] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        written, equals, text = word.partition("=")
        name = written[2:].replace("-", "_") if written.startswith("--") else ""
        positive = name.removeprefix("no_")
        if name not in flags and positive in flags and is_bool(flags[positive].hint):
            if equals:
                raise ConfigError("CP103", f"{word} should be {written}, without a value.")
            values[positive] = False
        elif name not in flags:
            others.append(word)
        else:
            flag = flags[name]
            given: Given = Scalar(text) if equals else _taken(rest, flag, written)
            values[name] = coerce(Setting(name, given, written), flag.hint, flag.choices)
    return values, others


def _taken(rest: list[str], flag: Flag, written: str) -> Given:
    """The value of a flag from the words after it."""
    ready = bool(rest) and not rest[0].startswith("--")
    if is_bool(flag.hint):
        given = ready and rest[0].lower() in TRUES + FALSES
        return Scalar(rest.pop(0)) if given else Scalar("true")
    if not ready:
        raise ConfigError("CP103", f"{written} needs a value, as in {written} VALUE.")
    if not is_list(flag.hint):
        return Scalar(rest.pop(0))
    several: list[Given] = []
    while rest and not rest[0].startswith("--"):
        several.append(Scalar(rest.pop(0)))
    return several[0] if len(several) == 1 else several


def refuse_others(words: list[str], flags: Mapping[str, Flag], command: str) -> None:
    """Raise CP101 where a word is a flag that the command does not have."""
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            near = get_close_matches(name, flags, n=1, cutoff=0.6)
            hint = f"did you mean --{near[0]}?" if near else f"see counterpoint {command} --help."
            raise ConfigError("CP101", f"{word.partition('=')[0]} is no option; {hint}")


def flags_help(flags: Mapping[str, Flag], width: int | None = None) -> str:
    """Every flag with its type, meaning and default.

    Args:
        flags: from ``flags_of``.
        width: columns to wrap at; None takes the terminal's, at most 110.
    """
    columns = max(40, width or min(shutil.get_terminal_size().columns, _WIDEST))
    return "\n".join(_describe(flag, columns) for flag in flags.values())


def _describe(flag: Flag, columns: int) -> str:
    kind = "word" if flag.choices else expected(flag.hint)
    text = flag.help
    if flag.choices:
        text += f" One of {', '.join(flag.choices)}."
    if flag.default not in (None, "", []):
        shown = str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
        text += f" Default: {shown}."
    body = textwrap.fill(
        text,
        width=columns,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )
    return f"  --{flag.name}  ({kind.removesuffix(' or null').removeprefix('a ')})\n{body}"
