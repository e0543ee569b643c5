"""Read what is given as the type its option declares: the one table for YAML and flags.

What a type accepts:

    null        null, ~, None, nothing at all in YAML     (not in quotes)
                none too, where no text may stand
    true/false  true, false, yes, no, on, off, 1, 0       (where text may stand too: true, false)
    whole       12, 1e3, "12"                             (not 1.5)
    number      0.1, 1e-6, "1e-6", 1_000                  (not nan, not inf)
    text        anything that is not a list or mapping
    list        a list; a single value becomes a list of one
    mapping     a mapping; in a flag, JSON

Not here: ranges and contradictions between options; those are ``CPOConfig``'s.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Literal

from counterpoint.errors import ConfigError
from counterpoint.options.given import Given, Scalar, Setting, as_python

NULLS = ("", "~", "null", "none")
TRUES = ("true", "yes", "on", "1")
FALSES = ("false", "no", "off", "0")
_MOST_SHOWN = 12


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: those of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def words(hint: Any) -> tuple[str, ...]:
    """The words an enumeration allows, also inside a list; empty where there is none."""
    for member in members(hint):
        inner = typing.get_args(member) if typing.get_origin(member) is list else (member,)
        for kind in inner:
            if isinstance(kind, type) and issubclass(kind, Enum):
                return tuple(str(item.value) for item in kind)
    return ()


def is_bool(hint: Any) -> bool:
    """Whether a flag of this type may stand without a value."""
    return bool in members(hint)


def is_list(hint: Any) -> bool:
    """Whether a flag of this type takes several values."""
    return any(typing.get_origin(member) is list for member in members(hint))


def expected(hint: Any) -> str:
    """The type in plain words, for messages and help."""
    if words(hint):
        kinds = ["a word"]
    else:
        kinds = [_word_for(member) for member in members(hint) if member is not type(None)]
    if type(None) in members(hint):
        kinds.append("null")
    return " or ".join(dict.fromkeys(kinds))


def coerce(setting: Setting, hint: Any, choices: tuple[str, ...] = ()) -> Any:
    """The value of a setting as its option's type.

    Args:
        setting: what was given, and where.
        hint: the option's annotation.
        choices: the words allowed, if only some are.

    Returns:
        A value that an isinstance check against ``hint`` accepts; the word itself, not the
        member, for an enumeration.

    Raises:
        ConfigError: CP102 for a word outside ``choices``, CP103 for any other type.
    """
    given = _unfold(setting, hint)
    allowed = choices or words(hint)
    for reads in _readers(hint):
        try:
            value = reads(given)
        except (ValueError, OverflowError):
            continue
        if allowed:
            _check_words(setting, value, allowed)
        return value
    if allowed:
        _check_words(setting, as_python(given), allowed)
    raise ConfigError("CP103", f"{setting} should be {expected(hint)}.")


def _unfold(setting: Setting, hint: Any) -> Given:
    """A flag's text that is a list or mapping in JSON, read as one."""
    given = setting.given
    if not isinstance(given, Scalar) or given.quoted:
        return given
    origins = [typing.get_origin(member) or member for member in members(hint)]
    opening = given.text.lstrip()[:1]
    if (opening == "{" and dict in origins) or (opening == "[" and list in origins):
        # loads the package yaml, which help and most flags do without
        from counterpoint.options.yaml_file import parse_flow

        return parse_flow(given.text, setting.where)
    return given


def _check_words(setting: Setting, value: Any, allowed: tuple[str, ...]) -> None:
    for word in value if isinstance(value, list) else [value]:
        if word is None or word in allowed:
            continue
        near = difflib.get_close_matches(str(word), allowed, n=3, cutoff=0.4)
        some = (*(near or allowed[:3]), "... (see --help)")
        shown = allowed if len(allowed) <= _MOST_SHOWN else some
        raise ConfigError("CP102", f"{setting} is not one of {', '.join(shown)}.")


def _readers(hint: Any) -> list[Callable[[Given], Any]]:
    """How to read each alternative of a type, the narrowest first, text last."""
    kinds = members(hint)
    texts = str in kinds
    found: list[Callable[[Given], Any]] = []
    if type(None) in kinds:
        found.append(_as_exact_null if texts else _as_null)
    if bool in kinds:
        found.append(_as_exact_bool if texts else _as_bool)
    found += [_as_whole] * (int in kinds) + [_as_number] * (float in kinds)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            found.append(partial(_as_literal, typing.get_args(kind)))
        if typing.get_origin(kind) is list:
            several = _as_written_list if texts and not words(kind) else _as_list
            found.append(partial(several, typing.get_args(kind)[0]))
        if dict in (kind, typing.get_origin(kind)):
            found.append(_as_mapping)
    if texts or (words(hint) and not is_list(hint)):
        found.append(_as_text)
    return found


def _word(given: Given) -> str:
    if not isinstance(given, Scalar):
        raise ValueError
    return given.text


def _as_null(given: Given) -> None:
    if _word(given).lower() not in NULLS or (isinstance(given, Scalar) and given.quoted):
        raise ValueError


def _as_exact_null(given: Given) -> None:
    # "none" is a word with a meaning for some options: report_to
    if _word(given) == "none":
        raise ValueError
    _as_null(given)


def _as_bool(given: Given) -> bool:
    word = _word(given).lower()
    if word not in TRUES + FALSES:
        raise ValueError
    return word in TRUES


def _as_exact_bool(given: Given) -> bool:
    word = _word(given).lower()
    if word not in ("true", "false"):
        raise ValueError
    return word == "true"


def _as_whole(given: Given) -> int:
    word = _word(given)
    try:
        return int(word)
    except ValueError:
        number = _as_number(given)
        if not number.is_integer():
            raise
        return int(number)


def _as_number(given: Given) -> float:
    number = float(_word(given))
    if not math.isfinite(number):
        raise ValueError
    return number


def _as_literal(values: tuple[Any, ...], given: Given) -> Any:
    word = _word(given).lower()
    for value in values:
        if str(value).lower() == word:
            return value
    raise ValueError


def _as_written_list(item: Any, given: Given) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError
    return _as_list(item, given)


def _as_list(item: Any, given: Given) -> list[Any]:
    if isinstance(given, dict):
        raise ValueError
    if isinstance(given, Scalar):
        # transformers' own debug option is several words in one text
        split = words(item) and not given.quoted
        parts: list[Any] = [Scalar(part) for part in given.text.split()] if split else [given]
    else:
        parts = given
    readers: list[Callable[[Given], Any]] = [_as_text] if words(item) else _readers(item)
    return [_first_that_reads(readers, part) for part in parts]


def _first_that_reads(readers: list[Callable[[Given], Any]], given: Given) -> Any:
    for reads in readers[:-1]:
        try:
            return reads(given)
        except (ValueError, OverflowError):
            continue
    return readers[-1](given)


def _as_mapping(given: Given) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError
    return {key: as_python(value) for key, value in given.items()}


def _as_text(given: Given) -> str:
    return _word(given)


def _word_for(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    if origin is list:
        inner = [_word_for(one).removeprefix("a ") for one in members(typing.get_args(kind)[0])]
        return f"a list of {' or '.join(f'{one}s' for one in inner)}"
    if origin is Literal:
        return " or ".join(str(value).lower() for value in typing.get_args(kind))
    named = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        dict: "a mapping",
    }
    return named.get(origin, "a " + getattr(origin, "__name__", str(origin)))
