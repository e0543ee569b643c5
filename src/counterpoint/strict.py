"""JSON as its standard has it: no bare NaN, no Infinity, which other readers refuse.

A number that is not finite becomes a word. Where something is read back by us, the word stands in a
mapping of its own (``marked``), so that it is known for a number again.

Not here: what is written (``runlog``, ``checkpoint``), and lines of a run's streams, which keep
such numbers apart by name (``runlog.nouns.NOT_FINITE``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

MARK = "not_finite"
"""The only key of a mapping that stands for a number."""

NUMBERS: Mapping[str, float] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Words and the numbers that they are for."""


def is_odd(value: Any) -> bool:
    """Whether JSON has no such number."""
    return isinstance(value, float) and not math.isfinite(value)


def spelt(value: Any) -> Any:
    """The same with a word in place of each number that is not finite, at any depth."""
    return _replaced(value, str)


def marked(value: Any) -> Any:
    """The same with a mapping in place of each, which ``unmarked`` takes back."""
    return _replaced(value, lambda odd: {MARK: str(odd)})


def unmarked(value: Any) -> Any:
    """What ``marked`` was given, as far as JSON keeps it."""
    if isinstance(value, Mapping):
        if value.keys() == {MARK} and value[MARK] in NUMBERS:
            return NUMBERS[value[MARK]]
        return {name: unmarked(one) for name, one in value.items()}
    return [unmarked(one) for one in value] if isinstance(value, list) else value


def strict_json(
    value: Any,
    *,
    indent: int | None = None,
    ensure_ascii: bool = True,
    sort_keys: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """A value as strict JSON, its odd numbers as words; the rest as ``json.dumps`` takes it."""
    return json.dumps(
        spelt(value),
        indent=indent,
        ensure_ascii=ensure_ascii,
        sort_keys=sort_keys,
        default=default,
        allow_nan=False,
    )


def _replaced(value: Any, put: Callable[[float], Any]) -> Any:
    if is_odd(value):
        return put(value)
    if isinstance(value, Mapping):
        return {name: _replaced(one, put) for name, one in value.items()}
    return [_replaced(one, put) for one in value] if isinstance(value, list | tuple) else value
