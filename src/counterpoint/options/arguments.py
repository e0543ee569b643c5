"""Split the words of a command line into flags and what is none: the one reader for every command.

    --beta 0.1   --beta=0.1   --bf16   --no_bf16   --bf16 false   --dataset a.jsonl b.jsonl

Hyphens and underscores in a name are the same. A flag given twice counts the last time, so that
a script may append to a command; a flag that takes several values adds them up instead.

argparse is not used: it abbreviates names, reads ``-1e-3`` as a flag and ends in its own usage
message instead of a coded error.

Not here: which flags a command has (``command``, ``table``) and types (``coerce``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from counterpoint.errors import ConfigError
from counterpoint.options.coerce import FALSES, NULLS, TRUES, is_bool, is_list
from counterpoint.options.given import Given, Scalar, Setting

Reads: TypeAlias = Callable[[str], tuple[Any, tuple[str, ...]] | None]
"""Type and choices of a flag's value, by the flag's name; None for a name that is no flag."""


def take(
    words: Sequence[str],
    reads: Reads,
    stray: Callable[[str], None],
    waits: Callable[[], bool] = lambda: True,
) -> dict[str, Setting]:
    """Read the flags among the words of a command line.

    Args:
        words: what follows the command.
        reads: the flags.
        stray: takes every word that is no flag and no value of one, in their order.
        waits: whether such a word may still come, so that one behind a switch is not its value.

    Returns:
        The flags that were given, by name.

    Raises:
        ConfigError: CP103 for a flag without its value, or with one that it cannot have.
    """
    taken: dict[str, Setting] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        written, equals, text = word.partition("=")
        name, negated = _resolve(written, reads)
        found = reads(name) if name else None
        if found is None:
            stray(word)
            continue
        hint = found[0]
        if negated and equals:
            raise ConfigError("CP103", f"{word} should be {written}, without a value.")
        if negated or equals:
            given: Given = Scalar("false" if negated else text)
        else:
            given = _value(rest, hint, waits)
        if given == []:
            raise ConfigError("CP103", f"{written} needs a value, as in {written} VALUE.")
        if name in taken and is_list(hint):
            given = [*_as_list(taken[name].given), *_as_list(given)]
        taken[name] = Setting(name, given, written)
    return taken


def _resolve(written: str, reads: Reads) -> tuple[str, bool]:
    """Name of a flag, and whether it was written as ``--no_name``; "" for what is no flag."""
    if not written.startswith("--"):
        return "", False
    name = written[2:].replace("-", "_")
    if reads(name) is not None:
        return name, False
    positive = name.removeprefix("no_")
    found = reads(positive) if positive != name else None
    return (positive, True) if found is not None and is_bool(found[0]) else ("", False)


def _value(rest: list[str], hint: Any, waits: Callable[[], bool]) -> Given:
    """The value of a flag from the words after it, which are taken; empty where there is none."""
    ready = bool(rest) and not rest[0].startswith("--")
    if is_bool(hint):
        # A word that is no truth value may be a file, if that is still to come.
        free_text = str in getattr(hint, "__args__", ())
        own = ready and (free_text or not waits() or rest[0].lower() in TRUES + FALSES + NULLS)
        return Scalar(rest.pop(0) if own else "true")
    if not is_list(hint):
        return Scalar(rest.pop(0)) if ready else []
    several: list[Given] = []
    while rest and not rest[0].startswith("--"):
        several.append(Scalar(rest.pop(0)))
    return several[0] if len(several) == 1 else several


def _as_list(given: Given) -> list[Given]:
    return given if isinstance(given, list) else [given]
