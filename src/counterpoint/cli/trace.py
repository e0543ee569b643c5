"""``counterpoint trace``: from a pair to its candidates, their scores and settings.

Not here: finding them (``scoring.tracing``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import put
from counterpoint.errors import ConfigError, DataError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.scoring.tracing import TracedPair, TracedSide

USAGE = """\
usage: counterpoint trace PAIRS.jsonl ROW [--json]

Says where a pair came from: the candidates behind chosen and rejected, their
models, scores and vetoes, what scored them, and how they were drawn. ROW counts
from 0. Reads the files that counterpoint pairs, score and sample left beside
theirs; what is not there any more is said.

example:
  counterpoint trace pairs.jsonl 17

options:
"""

_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What the command takes beside file and row."""

    json: bool = option(False, "Everything as a JSON object, nothing cut short.")


COMMAND = Command("trace", USAGE, TraceOptions)


def trace(words: list[str]) -> None:
    """Say where a pair came from.

    Args:
        words: what follows ``counterpoint trace``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, given = COMMAND.read(words)
    if len(given) != 2:
        raise ConfigError("CP107", "write counterpoint trace PAIRS.jsonl ROW, with a row from 0.")
    if not given[1].isdecimal():
        raise ConfigError("CP103", f"row {given[1]} should be a whole number, at least 0.")
    from counterpoint.data.sources import load, pick_split
    from counterpoint.scoring.tracing import trace_pair

    path, number = Path(given[0]).expanduser(), int(given[1])
    rows = pick_split(load(str(path), streaming=True))
    pair = next(itertools.islice(rows, number, None), None)
    if pair is None:
        raise DataError("CP209", f"{path} has no row {number}; rows count from 0.")
    found = trace_pair(path, pair)
    text = strict_json(found.as_dict(), indent=1, ensure_ascii=False, default=str)
    put(text if options.json else "\n".join(_lines(path, number, found)))


def _lines(path: Path, number: int, found: TracedPair) -> Iterator[str]:
    pair = found.pair
    yield f"row {number} of {path}"
    yield f"  prompt: {_short(pair['prompt'])}"
    if "score_gap" in pair:
        human = ", as a human chose" if pair.get("human") else ""
        yield f"  gap {pair['score_gap']:g}{human}"
    if found.rules is not None:
        yield f"  made by: {_settings(found.rules)}"
    for name, side in found.sides.items():
        yield ""
        yield f"{name}: {_short(side.text)}"
        yield from _side(side)
    for file in found.missing:
        yield ""
        yield f"{file} is not there any more."


def _side(side: TracedSide) -> Iterator[str]:
    if side.place is None:
        yield "  the pair does not say which candidate this is"
        return
    of = ", ".join(f"{name} {value}" for name, value in side.place.items() if value is not None)
    yield f"  from: {of}"
    if side.row is None:
        yield "  its line of scores was not found"
        return
    yield f"  in: {side.file}"
    scores = {**side.row.get("scores", {}), "score": side.row.get("score")}
    yield f"  scores: {_settings(scores, keep=True)}"
    if side.row.get("vetoed"):
        yield f"  vetoed by: {', '.join(side.row['vetoed'])}"
    for name, scorer in side.scorers.items():
        yield f"  scorer {name}: {_settings(scorer)}"
    if side.sampled:
        yield f"  drawn: {_settings(side.sampled)}"


def _settings(values: Mapping[str, Any], *, keep: bool = False) -> str:
    """Names and values on a line; what is not set is left out."""
    shown = {
        name: value
        for name, value in values.items()
        if keep or not (value is None or value is False or value in ("", []))
    }
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, str | int) else strict_json(value, ensure_ascii=False)


def _short(text: Any) -> str:
    plain = text if isinstance(text, str) else strict_json(text, ensure_ascii=False, default=str)
    line = " ".join(plain.split())
    return line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 3]}..."
