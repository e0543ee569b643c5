"""Options as a dataclass declares them: a field's name, type, default, and help in its metadata.

Not here: values (``coerce``), and which options ``train`` has (``table``).
"""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from counterpoint.options.coerce import expected, words
from counterpoint.wrap import help_width

_INDENT = " " * 6


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command.

    Args:
        name: as a key of YAML and, after two hyphens, as a flag.
        hint: the annotation of its field.
        default: the value when it is not given.
        help: what it means.
        choices: the words allowed; empty where any value of the type is.
        group: under which ``train`` lists it; "" for other commands.
    """

    name: str
    hint: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    group: str = ""


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass of options.

    Args:
        default: the value when it is not given; of a list, each object gets its own.
        text: what it means, with range and unit.
        choices: the words allowed, if only some are.
    """
    metadata = {"help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declared(*kinds: type[Any], group: str = "") -> dict[str, Option]:
    """The options that dataclasses declare, by name.

    A field's underscore at the end is no part of its option: ``from_`` is ``--from``.

    Args:
        kinds: the dataclasses.
        group: of all of them.
    """
    found = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for one in fields(kind):
            if one.init:
                hint, text = hints[one.name], str(one.metadata.get("help", ""))
                choices = tuple(one.metadata.get("choices") or ()) or words(hint)
                name = one.name.removesuffix("_")
                told = " ".join(text.split())
                found[name] = Option(name, hint, _default(one), told, choices, group)
    return found


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return getattr(one.default, "value", one.default)


def kind(option: Option) -> str:
    """What an option takes, in plain words."""
    found = "a word" if option.choices else expected(option.hint)
    return found.removesuffix(" or null").removeprefix("a ")


def described(option: Option, text: str, default: str | None, columns: int) -> str:
    """An option as ``--help`` lists it.

    Args:
        option: to describe.
        text: what it means.
        default: as it is shown; None: it is not.
        columns: to wrap at.
    """
    if option.choices:
        text += f" One of {', '.join(option.choices)}."
    if default is not None:
        text += f" Default: {default}."
    body = textwrap.fill(
        text.strip(),
        width=columns,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    )
    return f"  --{option.name}  ({kind(option)})\n{body}"


def flags_help(flags: Mapping[str, Option], width: int | None = None) -> str:
    """Every flag with its type, meaning and default.

    Args:
        flags: from ``declared``.
        width: columns to wrap at; as for ``help_width``.
    """
    columns, every = help_width(width), flags.values()
    return "\n".join(described(one, one.help, _shown(one.default), columns) for one in every)


def _shown(default: Any) -> str | None:
    if default in (None, "", []):
        return None
    return str(default).lower() if isinstance(default, bool) else str(default)
