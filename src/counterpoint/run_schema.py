"""What the files of a run may hold: types, sizes and depth of everything that a reader relies on.

A run's folder may be damaged, or a stranger's. It is looked at once, where it is read
(``runlog.read_run``); behind that door a step is a whole number, a time a moment of history, and
what has names a mapping. What no reader relies on is free, short of the depth of all and of numbers
that no float holds. A number of a metric may be NaN, which earlier releases wrote bare.

Not here: reading files and lines (``runlog``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

DEEPEST = 64
"""Values inside each other, in any file of a run."""

MOST = 10**300
"""Size of a whole number: beyond, no float holds it."""

LAST_MOMENT = 2.5e11
"""Seconds since 1970 that a calendar can still name."""

MOST_STEPS = 2**53
"""Steps, rows and tokens: up to here every number is exact as a float."""

Check = Callable[[Any, str], None]
"""Raises ``ValueError`` for a value at a place that is not as it should be."""


def check_facts(facts: Any) -> Mapping[str, Any]:
    """The content of ``run.json``, if it is what a run writes.

    Args:
        facts: as JSON gives it.

    Raises:
        ValueError: with the place, what is there and what should be.
    """
    _checked(facts, FACTS)
    found: Mapping[str, Any] = facts
    return found


def check_line(stream: str, line: Any, mark: str) -> Mapping[str, Any]:
    """A line of a stream, if it is what a run writes.

    Args:
        stream: "metrics", "alarms", "movement" or "samples".
        line: as JSON gives it.
        mark: the key that a mark has and no other line.

    Raises:
        ValueError: as ``check_facts``.
    """
    marked = isinstance(line, Mapping) and mark in line
    _checked(line, MARK if marked else LINES.get(stream, LINE))
    if marked and not ({"from", "to", "step"} & line.keys()):
        raise ValueError("a mark that says neither a step nor a place")
    found: Mapping[str, Any] = line
    return found


# Kinds of values


def _says(expected: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any, place: str) -> None:
        if not holds(value):
            raise ValueError(f"{_short(place)} should be {expected}, not {_shown(value)}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS


text = _says("text", lambda value: isinstance(value, str))
number = _says("a number", _is_number)
truth = _says("true or false", lambda value: isinstance(value, bool))
finite = _says("a finite number", lambda value: _is_number(value) and math.isfinite(value))
whole = _says("a whole number from 0", _is_whole)
moment = _says("seconds since 1970", lambda value: _is_number(value) and 0 <= value <= LAST_MOMENT)


def anything(value: Any, place: str) -> None:
    """Whatever JSON holds."""


def optional(check: Check) -> Check:
    """The same, or null."""
    return lambda value, place: None if value is None else check(value, place)


def list_of(check: Check) -> Check:
    """A list of such values."""

    def each(value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{_short(place)} should be a list, not {_shown(value)}")
        for number_, one in enumerate(value):
            check(one, f"{place}[{number_}]")

    return each


def mapping_of(check: Check) -> Check:
    """A mapping from any names to such values."""

    def each(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{_short(place)} should be a mapping, not {_shown(value)}")
        for name, one in value.items():
            check(one, f"{place}.{name}")

    return each


def record(others: Check = anything, **known: Check) -> Check:
    """A mapping in which some names have their own kind of value; each of them may be missing."""

    def each(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{_short(place)} should be a mapping, not {_shown(value)}")
        for name, one in value.items():
            known.get(name, others)(one, f"{place}.{name}")

    return each


def _constraint_or_anything(value: Any, place: str) -> None:
    # "constraints/NAME/KEY" in a line, and the same after "eval_"
    if "constraints/" in place:
        number(value, place)


def _short(place: str) -> str:
    return place if len(place) <= 80 else f"{place[:77]}..."


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    shown = repr(value) if not isinstance(value, int) or abs(value) < MOST else "a huge number"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


# What a run writes

_COUNTS = optional(mapping_of(whole))
_HISTOGRAM = optional(record(edges=optional(list_of(finite)), counts=optional(list_of(finite))))
_SET = record(
    rows=optional(whole),
    kept=whole,
    dropped=_COUNTS,
    examples=optional(mapping_of(text)),
    tokens=_COUNTS,
    given_rows=whole,
    given_tokens=_COUNTS,
    cut_rows=_COUNTS,
    cut_tokens=_COUNTS,
    absent_rows=_COUNTS,
    boundary_rows=whole,
    boundary_tokens=whole,
    little_rows=whole,
    same_rows=whole,
    spelled_rows=whole,
    listed_rows=optional(whole),
    listed_pairs=optional(whole),
    lost=_COUNTS,
    shown=optional(mapping_of(text)),
    lengths=optional(mapping_of(_HISTOGRAM)),
    limits=optional(mapping_of(anything)),
    digest=optional(text),
    shares=optional(
        list_of(record(name=text, rows=whole, pairs=whole, epoch=whole, weight=number))
    ),
)
_CONSTRAINT = record(
    name=text,
    kind=text,
    bound=optional(number),
    slack=optional(number),
    cap=number,
    rate=number,
    start=number,
)


def _named(value: Any, place: str) -> None:
    _CONSTRAINT(value, place)
    if "name" not in value:
        raise ValueError(f"{_short(place)} should have a name")


FACTS = record(
    started=optional(moment),
    resumed=optional(list_of(record(step=whole, time=moment))),
    ended=optional(
        record(
            state=text,
            step=optional(whole),
            time=optional(moment),
            error=optional(anything),
        )
    ),
    objective=optional(text),
    options=record(
        loss_type=optional(text),
        cpo_alpha=optional(finite),
        constraints=optional(list_of(mapping_of(anything))),
    ),
    changed=list_of(text),
    given=optional(mapping_of(anything)),
    adapter=optional(mapping_of(mapping_of(anything))),
    dequantized=optional(mapping_of(anything)),
    merged=optional(record(base=text, adapters=list_of(text))),
    base=optional(text),
    command=optional(list_of(text)),
    constraints=optional(list_of(_named)),
    data=mapping_of(_SET),
    environment=mapping_of(anything),
    versions=mapping_of(anything),
    step_pairs=optional(whole),
    segments=optional(
        list_of(
            record(
                step=whole,
                ranks=whole,
                per_device_train_batch_size=whole,
                gradient_accumulation_steps=whole,
            )
        )
    ),
    steps=optional(whole),
)
"""Of ``run.json``."""

LINE = record(step=whole, time=moment)
_PLACES = optional(mapping_of(mapping_of(anything)))

LINES: Mapping[str, Check] = {
    "metrics": record(
        _constraint_or_anything,
        **{"step": whole, "time": moment, "train_runtime": finite},
        **dict.fromkeys(("loss", "rewards/accuracies"), number),
    ),
    "alarms": record(
        step=whole, since=whole, time=moment, code=text, seen=text, fix=optional(text)
    ),
    "movement": record(step=whole, last=whole, time=moment, groups=_PLACES, tensors=_PLACES),
    "samples": record(
        step=whole,
        time=moment,
        tokens=optional(whole),
        repetition=optional(finite),
        pictures=optional(
            list_of(
                record(
                    file=text,
                    width=whole,
                    height=whole,
                    digest=text,
                    thumbnail=optional(text),
                    why=optional(text),
                )
            )
        ),
    ),
}
"""Of each stream."""

MARK = record(**{"mark": text, "step": whole, "from": whole, "to": whole, "time": moment})
"""Of what says which lines count."""


def _checked(value: Any, check: Check) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"it should be a mapping, not {_shown(value)}")
    check_sizes(value)
    check(value, "it")


def check_sizes(value: Any) -> None:
    """Refuse depth and numbers that no reader can take.

    Args:
        value: as JSON gives it.

    Raises:
        ValueError: with what is too deep, or too large.
    """
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, int) and abs(one) > MOST:
                raise ValueError("it holds a number beyond 10 to the 300")
        level = inner
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")
