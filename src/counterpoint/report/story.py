"""What a reader wants to know first: how the run ended, whether it is sound, what went wrong when.

Everything here is words and numbers made from a ``Run``; no HTML.

Not here: what an alarm's code means (``doctor.table``), raising alarms (the trainer).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from counterpoint.doctor.table import TABLE, Entry
from counterpoint.report.charts import number
from counterpoint.report.curves import TRAINING, SeriesTable
from counterpoint.report.progress import progress_of
from counterpoint.runlog import RUN_FILE, Run

Tone = Literal["good", "warn", "bad", "plain"]
QUIET = 600
"""Seconds without a line after which a run without an end counts as gone."""

METHODS: Mapping[str, str] = {
    "sigmoid": "CPO",
    "hinge": "CPO, hinge loss (SLiC)",
    "ipo": "IPO",
    "simpo": "SimPO",
    "alphapo": "AlphaPO",
    "orpo": "ORPO",
    "repo": "RePO",
}
"""loss_type -> the method's name."""

_UNKNOWN = Entry(
    "an alarm that this version does not know",
    "It was raised by another version of Counterpoint.",
    "counterpoint doctor --explain CODE of that version says what it means.",
)


@dataclass(frozen=True, slots=True)
class AlarmKind:
    """Every time that one code was raised.

    Args:
        number: from 1, in the order of the first times; marks it in the charts.
        code: of the doctor's table.
        meaning: its entry there.
        steps: at which it was raised.
        since: where it began, of each of ``steps``.
        seen: what was seen the first time.
        fix: what to paste; "" where there is nothing.
    """

    number: int
    code: str
    meaning: Entry
    steps: tuple[int, ...]
    since: tuple[int, ...]
    seen: str
    fix: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The run in two sentences.

    Args:
        tone: of it.
        headline: a few words.
        sentence: what it rests on.
    """

    tone: Tone
    headline: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One number at the top of the page.

    Args:
        label: what it is.
        value: in words, the last one.
        before: in words, the first one.
        set_name: of which set.
    """

    label: str
    value: str
    before: str
    set_name: str


def alarm_kinds(alarms: Sequence[Mapping[str, Any]]) -> tuple[AlarmKind, ...]:
    """Alarms by their codes, in the order in which each was first raised."""
    by_code: dict[str, list[Mapping[str, Any]]] = {}
    for alarm in sorted(alarms, key=lambda one: one.get("step", 0)):
        by_code.setdefault(str(alarm.get("code", "?")), []).append(alarm)
    return tuple(
        AlarmKind(
            place,
            code,
            TABLE.get(code, _UNKNOWN),
            tuple(int(one.get("step", 0)) for one in raised),
            tuple(int(one.get("since", one.get("step", 0))) for one in raised),
            str(raised[0].get("seen", "")),
            str(raised[0].get("fix") or ""),
        )
        for place, (code, raised) in enumerate(by_code.items(), 1)
    )


def last_step(run: Run) -> int:
    """The last step of which anything is known; 0 before the first."""
    return progress_of(run).step


def state_of(run: Run, now: float | None = None) -> str:
    """How the run stands, in a word.

    Args:
        run: as far as it is written.
        now: seconds since 1970; None asks the clock.

    Returns:
        What its ``ended`` says (finished, interrupted, failed, stopped), else "running", or
        "gone" where nothing was written for ``QUIET`` seconds, or for three times as long as
        ever between two lines.
    """
    ended = run.facts.get("ended")
    if ended:
        return str(ended.get("state", "finished"))
    # 0.2 and before wrote no end: transformers' last line tells of it
    if any("train_runtime" in line for line in run.metrics):
        return "finished"
    quiet = (time.time() if now is None else now) - last_sign(run)
    return "running" if quiet < max(QUIET, 3 * _longest_wait(run)) else "gone"


def last_sign(run: Run) -> float:
    """When a run last wrote something, in seconds since 1970."""
    last = (stream[-1:] for stream in (run.metrics, run.samples, run.movement, run.alarms))
    ended = [run.facts["ended"]] if run.facts.get("ended") else []
    resumed = (run.facts.get("resumed") or ())[-1:]
    signs = [line for lines in (*last, resumed, ended) for line in lines]
    times = [float(run.facts.get("started") or 0), *(float(one.get("time", 0)) for one in signs)]
    if run.facts.get("started") is None:  # it is there, and its training has not begun
        times.append(_written(run))
    return max(times)


def _written(run: Run) -> float:
    """When a run's facts were written, in seconds since 1970; 0 where there is no file."""
    try:
        return (run.folder / RUN_FILE).stat().st_mtime
    except OSError:
        return 0.0


def _longest_wait(run: Run) -> float:
    """Seconds between two of the lines that the process which trains has logged; 0 before two."""
    resumed = (run.facts.get("resumed") or ())[-1:]
    begun = max((float(one.get("time", 0)) for one in resumed), default=0.0)
    times = [float(line["time"]) for line in run.metrics if "time" in line]
    times = [at for at in times if at >= begun]
    return max((after - before for before, after in pairwise(times)), default=0.0)


_STATES: Mapping[str, str] = {
    "finished": "finished after {steps}",
    "interrupted": "interrupted at step {step}{of}",
    "failed": "failed at step {step}{of}",
    "stopped": "stopped at step {step}{of}",
    "running": "running, at step {step}{of}{left}",
    "gone": "ended at step {step}{of} without a word: killed, or cut off",
}


def state_in_words(run: Run, now: float | None = None) -> str:
    """How the run stands, in a few words: "finished after 2,000 steps"."""
    far = progress_of(run, now)
    pattern = _STATES.get(state_of(run, now), "ended at step {step}{of}")
    return pattern.format(
        step=f"{far.step:,}",
        steps=count(far.step, "step"),
        of="" if far.steps is None else f" of {far.steps:,}",
        left="" if far.left is None else f", about {span(far.left)} left",
    )


def verdict(run: Run, now: float | None = None) -> Verdict:
    """Whether the run is sound, and what that rests on."""
    state, kinds = state_of(run, now), alarm_kinds(run.alarms)
    error = _told((run.facts.get("ended") or {}).get("error"))
    steps = count(last_step(run), "step")
    raised = count(len(run.alarms), "alarm")
    if state == "failed":
        more = f" {raised} before that." if kinds else ""
        return Verdict("bad", "Failed", f"{error or 'It ended with an error.'}{more}")
    if kinds:
        first = kinds[0]
        at = (
            f"step {first.since[0]:,}"
            if first.since[0] == first.steps[0]
            else (f"step {first.since[0]:,}, seen at step {first.steps[0]:,}")
        )
        stopped = "; the run was stopped" if state == "stopped" else ""
        return Verdict(
            "bad" if state == "stopped" else "warn",
            raised,
            f"First {first.code}, {first.meaning.title}: from {at}{stopped}.",
        )
    if not run.metrics:
        return Verdict("plain", "Nothing logged yet", "No step has been written down so far.")
    if state == "gone":
        return Verdict(
            "warn", "Cut off", f"No alarm in {steps}, but no end either: it was killed or cut off."
        )
    if state in ("interrupted", "stopped"):
        return Verdict("plain", state.capitalize(), f"No alarm in {steps}.")
    if state == "running":
        return Verdict("good", "Healthy so far", f"No alarm in {steps}.")
    return Verdict("good", "Healthy", f"No alarm was raised in {steps}.")


def _told(error: Any) -> str:
    """An error as the run log keeps it, a code and what was seen, in a sentence."""
    if isinstance(error, Mapping):
        return " ".join(str(error[part]) for part in ("code", "seen") if error.get(part))
    return str(error or "")


_FIGURES = (
    ("loss", "Loss"),
    ("rewards/accuracies", "Preference accuracy"),
    ("rewards/margins", "Reward margin"),
    ("logps/chosen", "Log-probability of chosen"),
)


def figures(table: SeriesTable) -> tuple[Figure, ...]:
    """The numbers at the top: of an evaluation set where there is one, else of training."""
    sets = list(dict.fromkeys(name for name, _ in table))
    # training lines are the mean of some steps, evaluations of a whole set
    chosen = next((name for name in sets if name != TRAINING), TRAINING)
    found = []
    for metric, label in _FIGURES:
        name = chosen if (chosen, metric) in table else TRAINING
        series = table.get((name, metric))
        if series is not None:
            first, last = series.values[0], series.values[-1]
            before = number(first) if len(series.values) > 1 else ""
            found.append(Figure(label, number(last), before, name))
    return tuple(found)


def method(run: Run) -> str:
    """The name of what was trained with: "SimPO", with its NLL term if it has one."""
    options = run.facts.get("options") or {}
    loss_type = str(options.get("loss_type", ""))
    name = METHODS.get(loss_type, loss_type or "a run")
    nll = float(options.get("cpo_alpha") or 0)
    if loss_type == "simpo" and nll:
        return "CPO-SimPO"
    if loss_type == "sigmoid" and not nll:
        return "CPO without its NLL term"
    return name


def duration(run: Run) -> str:
    """How long it ran, in words; "" where that is not known.

    Of a run that was taken up again it is the time from its start to its end, pauses included.
    """
    started = run.facts.get("started")
    times = [float(line["time"]) for line in run.metrics if "time" in line]
    known = next((line["train_runtime"] for line in run.metrics if "train_runtime" in line), None)
    if known is None or run.facts.get("resumed"):  # transformers counts from there on
        begin = float(started) if isinstance(started, int | float) else min(times, default=0.0)
        ended = (run.facts.get("ended") or {}).get("time")
        end = float(ended) if isinstance(ended, int | float) else max(times, default=0.0)
        known = end - begin
    return span(float(known)) if known > 0 else ""


def span(seconds: float) -> str:
    """A duration in words: "2 h 05 min", "41 s"."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


def moment(seconds: Any) -> str:
    """A time as "2026-11-25 02:35 UTC"; other things as they are."""
    if isinstance(seconds, int | float):
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    return str(seconds)


def count(how_many: int, thing: str) -> str:
    """A number of things: "1 step", "2,000 steps"."""
    return f"{how_many:,} {thing}{'' if how_many == 1 else 's'}"
