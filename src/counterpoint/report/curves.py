"""From log lines to curves: what was logged of each set, and which charts show it.

A step that was done again, after a run went on from a checkpoint, counts as it was done last.

Not here: drawing (``drawing``), several runs at once (``comparison``).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.language import phrase
from counterpoint.report.charts import DASHES, ChartLine, LineChart, thin
from counterpoint.report.palette import SERIES
from counterpoint.runlog import CONSTRAINTS

TRAINING, EVALUATION = "training", "evaluation"

_NO_METRICS = frozenset(
    {"step", "time", "epoch", "total_flos", "num_input_tokens_seen", "skipped_steps"}
    | {"train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    | {"train_tokens_per_second"}
)
_NO_EVALUATION = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")

_CURVE, _SPEED, _SAMPLES = "curves", "speed", "samples"


@dataclass(frozen=True, slots=True)
class Panel:
    """Which metrics share a chart.

    Args:
        key: of the chart.
        title: of the chart.
        unit: of its values.
        metrics: name in the log -> label.
        part: of the page: "curves", "speed" or "samples".
        note: how to read it.
        best: whether more is better, or less; None where neither is.
        log: logarithmic scale.
    """

    key: str
    title: str
    unit: str
    metrics: Mapping[str, str]
    part: str = _CURVE
    note: str = ""
    best: str | None = None
    log: bool = False


PANELS = (
    Panel("loss", "Loss", "nats", {"loss": ""}, best="least"),
    Panel(
        "nll",
        "NLL of the chosen",
        "nats a token",
        {"nll_loss": ""},
        note="Where it rises, the chosen completions become less likely than they were.",
        best="least",
    ),
    Panel(
        "accuracies",
        "Preference accuracy",
        "share of pairs",
        {"rewards/accuracies": ""},
        note="How often the chosen completion has the higher reward; 0.5 is chance.",
        best="greatest",
    ),
    Panel("margins", "Reward margin", "nats", {"rewards/margins": ""}),
    Panel(
        "logps",
        "Log-probabilities",
        "nats a completion, or a token under mean rewards",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"},
        note="Where both fall while the margin rises, likelihood is displaced.",
    ),
    Panel(
        "rewards", "Rewards", "nats", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
    ),
    Panel("learning_rate", "Learning rate", "", {"learning_rate": ""}),
    Panel("grad_norm", "Gradient norm", "before clipping", {"grad_norm": ""}, log=True),
    Panel("logits", "Logits", "mean", {"logits/chosen": "chosen", "logits/rejected": "rejected"}),
    Panel("aux_loss", "Load-balancing loss", "", {"aux_loss": ""}),
    Panel("pairs", "Pairs a second", "pairs", {"pairs_per_second": ""}, part=_SPEED),
    Panel("tokens", "Tokens a second", "tokens", {"tokens_per_second": ""}, part=_SPEED),
    Panel("seconds", "Seconds a step", "seconds", {"step_seconds": ""}, part=_SPEED),
    Panel("memory", "Peak memory", "MB", {"memory_mb": ""}, part=_SPEED),
    *(
        Panel(
            f"samples-{name}",
            title,
            unit,
            {f"samples/{name}": "not sampled", f"samples/sampled_{name}": "sampled"},
            part=_SAMPLES,
        )
        for name, title, unit in (
            ("length", "Length of samples", "tokens"),
            ("repetition", "Repetition in samples", "share"),
            ("ended", "Samples that ended", "share"),
            ("empty", "Samples that are empty", "share"),
            ("exact_match", "Exact matches", "share"),
            ("distinct_1", "Distinct tokens", "share"),
            ("distinct_2", "Distinct pairs of tokens", "share"),
        )
    ),
)
"""The charts of a run, in their order."""

LESS_WANTED = frozenset({"rewards", "learning_rate", "logits", "aux_loss"})
"""Charts of the curves that are folded: what they show, the others show better or is as asked."""

_KNOWN = tuple(
    sorted((metric for panel in PANELS for metric in panel.metrics), key=len, reverse=True)
)
_ENDS = ("_low", "_high")
"""With these a metric's name is that of the ends of its interval."""

MOST_MARKS = 40
"""Points of an evaluation's line up to which each is marked."""

MOST_OTHERS = 12
"""Charts of metrics that are neither in ``PANELS`` nor of constraints."""


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one set.

    Args:
        steps: at which it was logged, rising.
        values: as many; NaN where it was not finite.
        times: when, in seconds since 1970.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    times: tuple[float, ...]


SeriesTable = Mapping[tuple[str, str], Series]
"""(set, metric) -> series; the training set comes first."""


def read_series(lines: Iterable[Mapping[str, Any]]) -> SeriesTable:
    """Every metric of every set, from the lines of ``metrics.jsonl``."""
    lines = list(lines)
    sets = _named_sets(lines)
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        for key, value in line.items():
            if key in _NO_METRICS or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            place = _place(key, sets)
            if place is not None:
                found.setdefault(place, {})[step] = (float(value), float(line.get("time", 0.0)))
    ordered = sorted(found, key=lambda place: place[0] != TRAINING)
    return {place: _series(found[place]) for place in ordered}


def _series(points: Mapping[int, tuple[float, float]]) -> Series:
    steps = tuple(sorted(points))
    values = tuple(v if math.isfinite(v := points[step][0]) else math.nan for step in steps)
    return Series(steps, values, tuple(points[step][1] for step in steps))


def _named_sets(lines: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of evaluation sets, known by their losses; the longest first."""
    keys = {key for line in lines for key in line if key.startswith("eval_")}
    names = {
        key.removeprefix("eval_").removesuffix("_loss")
        for key in keys
        if key.endswith("_loss") and key not in ("eval_nll_loss", "eval_aux_loss")
    }
    return tuple(sorted(names - {""}, key=len, reverse=True))


def _place(key: str, sets: tuple[str, ...]) -> tuple[str, str] | None:
    """The set and the metric that a key of a log line names; None for what is no metric."""
    if not key.startswith("eval_"):
        return TRAINING, key
    rest = key.removeprefix("eval_")
    if rest in _NO_EVALUATION or rest.endswith(tuple(f"_{name}" for name in _NO_EVALUATION)):
        return None
    for metric in _KNOWN:
        if rest == metric:
            return EVALUATION, metric
        if rest.endswith(f"_{metric}"):
            return rest[: -len(metric) - 1], metric
    for name in sets:
        if rest.startswith(f"{name}_"):
            return name, rest[len(name) + 1 :]
    return EVALUATION, rest


def sets_of(table: SeriesTable) -> tuple[str, ...]:
    """Names of the sets, the training set first."""
    return tuple(dict.fromkeys(name for name, _ in table))


def panels_of(table: SeriesTable) -> tuple[Panel, ...]:
    """The charts for what was logged: those of ``PANELS``, then one for each other metric."""
    others = [metric for _, metric in table if metric not in _KNOWN and not metric.endswith(_ENDS)]
    held = [metric for metric in others if metric.startswith(CONSTRAINTS)]
    free = [metric for metric in others if not metric.startswith(CONSTRAINTS)]
    extra = [
        # its name may hold what no element's id can
        Panel(f"other-{zlib.crc32(metric.encode()):08x}", metric, "", {metric: ""})
        for metric in (*list(dict.fromkeys(free))[:MOST_OTHERS], *dict.fromkeys(held))
    ]
    logged = {metric for _, metric in table}
    return tuple(panel for panel in (*PANELS, *extra) if logged & set(panel.metrics))


def line_charts(table: SeriesTable, part: str) -> tuple[LineChart, ...]:
    """The charts of one part of the page, evaluation laid over training.

    Args:
        table: from ``read_series``.
        part: "curves", "speed" or "samples".
    """
    return tuple(
        _chart(panel, table)
        for panel in panels_of(table)
        if panel.part == part and not panel.title.startswith(CONSTRAINTS)
    )


def _chart(panel: Panel, table: SeriesTable) -> LineChart:
    lines = []
    several = len(panel.metrics) > 1
    for number_of_set, name in enumerate(sets_of(table)):
        for number, (metric, label) in enumerate(panel.metrics.items()):
            series = table.get((name, metric))
            if series is None:
                continue
            role = SERIES[(number if several else number_of_set) % len(SERIES)]
            lines.append(
                thin(
                    ChartLine(
                        key=f"{panel.key}/{name}/{metric}",
                        label=_label(label, name, alone=len(sets_of(table)) == 1),
                        role=role,
                        x=series.steps,
                        y=series.values,
                        dash=DASHES[number_of_set % len(DASHES)],
                        marks=is_marked(name, series),
                        low=_end(table, name, f"{metric}_low", series),
                        high=_end(table, name, f"{metric}_high", series),
                    )
                )
            )
    log = is_logarithmic(panel, lines)
    return LineChart(
        panel.key,
        phrase(panel.title),
        phrase(panel.unit),
        tuple(lines),
        log,
        phrase(panel.note),
    )


def is_marked(name: str, series: Series) -> bool:
    """Whether each value of a set's line gets a dot; a line of one value is seen by it alone."""
    return len(series.steps) <= (2 if name == TRAINING else MOST_MARKS)


def is_logarithmic(panel: Panel, lines: Iterable[ChartLine]) -> bool:
    """Whether a chart's scale is logarithmic: as its panel says, if every value can be on one."""
    return panel.log and all(y > 0 for line in lines for y in line.y if not math.isnan(y))


def _label(label: str, name: str, *, alone: bool) -> str:
    if alone and label:
        return phrase(label)
    return f"{phrase(label)}, {phrase(name)}" if label else phrase(name)


def _end(table: SeriesTable, name: str, metric: str, series: Series) -> tuple[float, ...]:
    """One end of the interval of each value; none where it was not logged beside every one."""
    found = table.get((name, metric))
    return found.values if found is not None and found.steps == series.steps else ()
