"""What a sweep varies, read from words: ``beta=0.1,0.5``, ``learning_rate=1e-6..1e-4:log``.

Not here: whether an option takes a value (``options``), which of the values is tried (``study``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from counterpoint.errors import ConfigError
from counterpoint.options.coerce import members
from counterpoint.options.given import Scalar, Setting
from counterpoint.options.table import reads, refuse_unknown

Point = dict[str, str]
"""A setting: a value of each option that is varied, as a command line has it."""

FIXED = (
    *("output_dir", "overwrite_output_dir", "resume", "resume_from_checkpoint"),
    *("eval_dataset", "eval_dataset_split", "eval_share", "metric_for_best_model", "hub_token"),
)
"""Options that are not varied: a run's place, and what all of them are judged by."""

_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")


@dataclass(frozen=True, slots=True)
class Axis:
    """One option that is varied: a list of values, or a range.

    Args:
        name: of the option.
        values: of a list, as they were written; empty for a range.
        low: of a range; included.
        high: of a range; included, above ``low``.
        log: whether a range is even in the logarithm.
        whole: whether a range is of whole numbers.
    """

    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def ends(self) -> tuple[str, ...]:
        """Every value of a list, or both ends of a range, as words of a command line."""
        return self.values or (self.word(self.low), self.word(self.high))

    def word(self, value: object) -> str:
        """A value of it as a word of a command line; a float without loss."""
        if isinstance(value, float):
            return str(int(value)) if self.whole else repr(value)
        return str(value)


def read_axes(words: Sequence[str]) -> tuple[Axis, ...]:
    """What is varied.

    Args:
        words: each NAME=VALUE,VALUE or NAME=LOW..HIGH, the latter with :log after it or without.

    Raises:
        ConfigError: CP101 for a name that is no option, with the nearest; CP103 for what is no
            list and no range; CP104 for an option given twice, or that must be the same in all.
    """
    if not words:
        raise ConfigError(
            "CP107", "--over is missing: name what varies, as in --over beta=0.1,0.5."
        )
    axes = [_axis(word) for word in words]
    names = [axis.name for axis in axes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError("CP104", f"--over has {twice} twice; write all of its values in one.")
    return tuple(axes)


def points(axes: Sequence[Axis]) -> list[Point] | None:
    """Every setting of a grid, the last option changing first; None where there is a range."""
    if not all(axis.values for axis in axes):
        return None
    names = [axis.name for axis in axes]
    return [dict(zip(names, one, strict=True)) for one in product(*(a.values for a in axes))]


def in_short(point: Point) -> str:
    """A setting in words, numbers to four digits."""
    return " ".join(f"{name}={_short(value)}" for name, value in point.items())


def _axis(word: str) -> Axis:
    written, equals, text = word.partition("=")
    name = written.removeprefix("--").replace("-", "_")
    if not equals or not name or not text:
        raise ConfigError(
            "CP103",
            f"--over {word} should be NAME=VALUE,VALUE or NAME=LOW..HIGH, perhaps with :log.",
        )
    where = f"--over {name}"
    refuse_unknown([Setting(name, Scalar(text), where)])
    if name in FIXED:
        raise ConfigError(
            "CP104",
            f"{where} cannot be varied: it must be the same in all runs, or is the sweep's.",
        )
    found = _RANGE.fullmatch(text)
    if found:
        return _range(name, where, found)
    values = tuple(part.strip() for part in text.split(","))
    if "" in values or len(set(values)) < len(values):
        raise ConfigError("CP103", f"{where}={text} has a value that is empty, or there twice.")
    return Axis(name, values)


def _range(name: str, where: str, found: re.Match[str]) -> Axis:
    known = reads(name)
    kinds = members(known[0]) if known else ()
    if not {int, float} & set(kinds):
        raise ConfigError("CP103", f"{where} takes no numbers, so no range; list its values.")
    low, high, log, whole = float(found[1]), float(found[2]), bool(found[3]), float not in kinds
    if low >= high or (log and low <= 0):
        raise ConfigError(
            "CP103",
            f"{where}={found[0]} should go from a smaller number to a larger"
            f"{', both above 0 with :log' if log else ''}.",
        )
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError("CP103", f"{where}={found[0]} should go between whole numbers.")
    return Axis(name, (), low, high, log, whole)


def _short(value: str) -> str:
    if re.fullmatch(_NUMBER, value) and len(value) > 6 and not value.isdigit():
        return f"{float(value):.4g}"
    return value
