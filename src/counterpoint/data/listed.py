r"""The sets of a run that is trained on several, as they are asked for: each with its weight.

A set is a mapping with the names of ``FIELDS``, or one word, ``PATH[#ROWS][:WEIGHT]``. A word's
weight is what stands behind its last colon, if that is a number: ``C:\\a.jsonl``, ``owner/name``
and ``owner/name:configuration:split`` have none. A word that names a file or folder is its path.

Not here: opening them (``mixture``). No import that takes time: the command reads this first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from counterpoint.errors import ConfigError

FIELDS = ("path", "weight", "subset", "split", "columns", "rows")
"""What a mapping may say of a set."""

MOST = 1000
"""Largest weight: more than so often nobody means a row to come in an epoch."""

_WORD = re.compile(r"(.+?)(?:#([0-9]+))?(?::([0-9]+(?:\.[0-9]*)?|\.[0-9]+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ListedSet:
    """One of several sets.

    Args:
        path: files, or one folder or hub id.
        weight: how often its rows come in an epoch, above 0 and at most ``MOST``.
        subset: its configuration on the hub.
        split: of it; None: train, or the only one there is.
        columns: where it keeps what this package calls by another name: ours -> its own.
        rows: most rows, its first ones, at least 1; None: all.
    """

    path: tuple[str, ...]
    weight: Fraction = Fraction(1)
    subset: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None

    @property
    def source(self) -> str | list[str]:
        """The path as ``sources.load`` takes it."""
        return self.path[0] if len(self.path) == 1 else list(self.path)

    @property
    def name(self) -> str:
        """What messages call it: the names of its files, or its id."""
        shown = " ".join(_shown(path) for path in self.path)
        more = [one for one in (self.subset, self.split) if one]
        return ":".join([shown, *more])


def names_of_sets(sets: Sequence[ListedSet]) -> list[str]:
    """A name for each set, no two alike: short ones, whole paths where these repeat, or numbers."""
    short, whole = [one.name for one in sets], [" ".join(one.path) for one in sets]
    names = [w if short.count(s) > 1 else s for s, w in zip(short, whole, strict=True)]
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]


def read_listed(given: Any) -> ListedSet:
    """One set as a file or a flag names it.

    Args:
        given: a word, or a mapping with names of ``FIELDS``.

    Raises:
        ConfigError: CP103 for what names no set, CP107 for one without a path.
    """
    if isinstance(given, str):
        return _of_word(given)
    if not isinstance(given, Mapping):
        raise _refused(given, "a mapping such as {path: a.jsonl, weight: 2}, or a word a.jsonl:2")
    unknown = [str(name) for name in given if name not in FIELDS]
    if unknown:
        raise ConfigError(
            "CP103", f"datasets: a set has no {unknown[0]!r}; it may have {', '.join(FIELDS)}."
        )
    paths = _paths(given.get("path"))
    weight, rows, columns = (given.get(name) for name in ("weight", "rows", "columns"))
    for name in ("subset", "split"):
        if given.get(name) is not None and not isinstance(given[name], str):
            raise _refused(given, f"a word for {name}, where it is a {type(given[name]).__name__}")
    if columns is not None and not _is_map(columns):
        raise _refused(given, "columns such as {prompt: question}: our name, then the set's own")
    return ListedSet(
        paths,
        weight=Fraction(1) if weight is None else _weight(weight, given),
        subset=given.get("subset"),
        split=given.get("split"),
        columns=dict(columns or {}),
        rows=None if rows is None else _rows(rows, given),
    )


def _of_word(word: str) -> ListedSet:
    if not word.strip():
        raise ConfigError("CP107", "datasets: a set is blank; name a file, a folder or a hub id.")
    found = None if Path(word).exists() else _WORD.fullmatch(word)
    if found is None:
        return ListedSet((word,))
    path, rows, weight = found.groups()
    return ListedSet(
        (path,),
        weight=Fraction(1) if weight is None else _weight(weight, word),
        rows=None if rows is None else _rows(int(rows), word),
    )


def _paths(given: Any) -> tuple[str, ...]:
    paths = [given] if isinstance(given, str) else given
    if not paths:
        raise ConfigError("CP107", "datasets: a set has no path; name a file, folder or hub id.")
    if not isinstance(paths, list | tuple) or not all(isinstance(p, str) and p for p in paths):
        raise _refused(given, "a path, or a list of files")
    return tuple(paths)


def _weight(given: Any, where: Any) -> Fraction:
    """The exact number that was written: 0.1 is a tenth, whatever a float makes of it."""
    number = not isinstance(given, bool) and isinstance(given, int | float | str)
    try:
        if number and not (isinstance(given, float) and not math.isfinite(given)):
            found = Fraction(str(given))
            if 0 < found <= MOST:
                return found
    except (ValueError, ZeroDivisionError):
        pass
    raise _refused(where, f"a weight above 0 and at most {MOST:,}: 1 trains each row once an epoch")


def _rows(given: Any, where: Any) -> int:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return given
    raise _refused(where, "rows of at least 1")


def _is_map(given: Any) -> bool:
    texts = isinstance(given, Mapping) and [*given, *given.values()]
    return isinstance(texts, list) and all(isinstance(one, str) and one for one in texts)


def _shown(path: str) -> str:
    name = Path(path).name
    # owner/name is a hub id, whose owner says which one it is
    return name if Path(path).suffix or Path(path).exists() else path


def _refused(given: Any, wanted: str) -> ConfigError:
    text = str(dict(given)) if isinstance(given, Mapping) else repr(given)
    return ConfigError("CP103", f"datasets: {text[:100]} should have {wanted}.")
