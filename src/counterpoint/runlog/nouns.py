"""What a run's folder is made of: the names of its files, an alarm, and a run as it was read.

Not here: writing (``writing``) and reading (``reading``) any of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.language import phrase
from counterpoint.notebook import notebook_html, rows_shown

RUN_FILE = "run.json"
REQUEST_FILE = "train.yaml"
"""The options a run was given, in its folder: ``counterpoint train`` takes it as it is."""

REPORT_FILE = "report.html"
"""The page about a run, in its folder, unless another name is asked for."""

METRICS, ALARMS, MOVEMENT, SAMPLES = STREAMS = ("metrics", "alarms", "movement", "samples")
"""The streams of a run; each is a file of that name, ending in .jsonl."""

CONSTRAINTS = "constraints/"
"""How the metrics of constraints begin: ``constraints/NAME/KEY``."""

MARK, BEGUN, RESUMED = "mark", "begun", "resumed"
"""The key that a mark has and no other line, and its two values."""

NOT_FINITE = "not_finite"
"""Where a line keeps its numbers that JSON cannot hold: name -> nan, inf or -inf, as words."""


def constraint_metric(name: str, key: str) -> str:
    """What a log line calls a number of a constraint.

    Args:
        name: of the constraint, without a slash.
        key: value, bound, violation, smoothed, multiplier, feasible or at_cap.
    """
    return f"{CONSTRAINTS}{name}/{key}"


def constraint_metrics(line: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, float]]:
    """The numbers of each constraint in a log line, by name and key, in the line's order.

    Args:
        line: of the stream ``METRICS``.
        prefix: before their names, such as "eval_".
    """
    found: dict[str, dict[str, float]] = {}
    for metric, number in line.items():
        if metric.startswith(prefix + CONSTRAINTS):
            name, _, key = metric.removeprefix(prefix + CONSTRAINTS).partition("/")
            found.setdefault(name, {})[key] = float(number)
    return found


def stream_file(folder: str | Path, stream: str) -> Path:
    """Where a stream of a run lies.

    Args:
        folder: the run directory.
        stream: one of ``STREAMS``.
    """
    return Path(folder) / f"{stream}.jsonl"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that goes wrong while a run goes on.

    Args:
        code: a key of the doctor's table, CW4xx.
        step: optimizer step at which it was seen.
        since: optimizer step at which it began, <= step.
        seen: what was seen, with values.
        fix: a line of configuration to paste; "" where there is none.
    """

    code: str
    step: int
    since: int
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory, as far as it is written.

    Args:
        folder: where it was read.
        facts: of ``run.json``; empty where there is none.
        metrics: log lines, in the order they were written, each with its "step" and "time".
        alarms: what was raised.
        movement: looks at the parameters.
        samples: texts that the model wrote.
    """

    folder: Path
    facts: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    alarms: tuple[Mapping[str, Any], ...]
    movement: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]

    def _repr_html_(self) -> str:
        """How the run went, in a notebook: facts, first and last numbers, alarms."""
        columns = ("code", "step", "since", "seen")
        alarms = [[alarm.get(column) for column in columns] for alarm in self.alarms]
        return notebook_html(
            f"{phrase('run')} {self.folder}",
            rows_shown(("", "of the run"), _told_of(self), label="facts"),
            rows_shown(("metric", "first", "last"), _ends_of(self.metrics), label="metrics"),
            rows_shown(columns, alarms, label="alarms"),
        )


def _told_of(run: Run) -> Iterator[tuple[str, str]]:
    facts, ended = run.facts, run.facts.get("ended") or {}
    model = facts.get("model")
    steps = [line["step"] for line in run.metrics if "step" in line]
    name = model.get("name") if isinstance(model, Mapping) else model
    yield phrase("model"), str(name or phrase("unknown"))
    yield phrase("objective"), str(facts.get("objective") or phrase("unknown"))
    state, step = ended.get("state", "no end yet"), ended.get("step", max(steps, default=0))
    yield phrase("state"), phrase("{state}, step {step}", state=phrase(str(state)), step=step)
    if ended.get("error"):
        yield phrase("error"), json.dumps(ended["error"])
    yield phrase("log lines"), ", ".join(f"{len(getattr(run, one)):,} {one}" for one in STREAMS)


def _ends_of(lines: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, Any, Any]]:
    """The first and the last value of each metric, in the order in which they were first logged."""
    ends: dict[str, tuple[Any, Any]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time", "epoch"):
                ends[name] = (ends.get(name, (value,))[0], value)
    return ((name, *both) for name, both in ends.items())
