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

from counterpoint.doctor.table import TABLE, Diagnosis, meaning
from counterpoint.language import phrase
from counterpoint.objectives import LOSSES
from counterpoint.report.charts import number
from counterpoint.report.curves import TRAINING, SeriesTable
from counterpoint.report.progress import progress_of
from counterpoint.runlog import RUN_FILE, Run

Tone = Literal["good", "warn", "bad", "plain"]
QUIET = 600
"""Seconds without a line after which a run without an end counts as gone."""


def _unknown() -> Diagnosis:
    return Diagnosis(
        phrase("an alarm that this version does not know"),
        phrase("It was raised by another version of Counterpoint."),
        phrase("counterpoint doctor --explain CODE of that version says what it means."),
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
    meaning: Diagnosis
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
            meaning(code) if code in TABLE else _unknown(),
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
    return phrase(
        pattern,
        step=f"{far.step:,}",
        steps=counted(far.step, *STEPS),
        of="" if far.steps is None else phrase(" of {steps}", steps=f"{far.steps:,}"),
        left="" if far.left is None else phrase(", about {time} left", time=span(far.left)),
    )


def verdict(run: Run, now: float | None = None) -> Verdict:
    """Whether the run is sound, and what that rests on."""
    state, kinds = state_of(run, now), alarm_kinds(run.alarms)
    error = _told((run.facts.get("ended") or {}).get("error"))
    steps = counted(last_step(run), *STEPS)
    raised = counted(len(run.alarms), *ALARMS)
    if state == "failed":
        said = error or phrase("It ended with an error.")
        if kinds:
            said = phrase("{said} {raised} before that.", said=said, raised=raised)
        return Verdict("bad", phrase("Failed"), said)
    if kinds:
        first = kinds[0]
        since, step = f"{first.since[0]:,}", f"{first.steps[0]:,}"
        at = phrase("step {since}, seen at step {step}", since=since, step=step)
        if since == step:
            at = phrase("step {step}", step=step)
        told = {"code": first.code, "title": first.meaning.title, "at": at}
        if state == "stopped":
            stopped = phrase("First {code}, {title}: from {at}; the run was stopped.", **told)
            return Verdict("bad", raised, stopped)
        return Verdict("warn", raised, phrase("First {code}, {title}: from {at}.", **told))
    if not run.metrics:
        none = phrase("No step has been written down so far.")
        return Verdict("plain", phrase("Nothing logged yet"), none)
    if state == "gone":
        gone = "No alarm in {steps}, but no end either: it was killed or cut off."
        return Verdict("warn", phrase("Cut off"), phrase(gone, steps=steps))
    if state in ("interrupted", "stopped"):
        headline = phrase("Stopped") if state == "stopped" else phrase("Interrupted")
        return Verdict("plain", headline, phrase("No alarm in {steps}.", steps=steps))
    if state == "running":
        so_far = phrase("No alarm in {steps}.", steps=steps)
        return Verdict("good", phrase("Healthy so far"), so_far)
    return Verdict(
        "good", phrase("Healthy"), phrase("No alarm was raised in {steps}.", steps=steps)
    )


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
    loss = LOSSES.get(loss_type)
    if loss is None:
        return phrase(loss_type or "a run")
    with_nll = float(options.get("cpo_alpha") or 0) != 0
    return phrase((loss.with_nll if with_nll else loss.without_nll) or loss.method)


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
        return phrase("{seconds} s", seconds=f"{seconds:.2g}")
    whole = round(seconds)
    if whole < 120:
        return phrase("{seconds} s", seconds=whole)
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 48:
        return phrase("{days} d {hours} h", days=hours // 24, hours=hours % 24)
    if hours:
        return phrase("{hours} h {minutes} min", hours=hours, minutes=f"{minutes:02d}")
    return phrase("{minutes} min {seconds} s", minutes=minutes, seconds=f"{whole % 60:02d}")


def moment(seconds: Any) -> str:
    """A time as "2026-11-25 02:35 UTC"; other things as they are."""
    if isinstance(seconds, int | float):
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    return str(seconds)


STEPS, ALARMS = ("1 step", "{count} steps"), ("1 alarm", "{count} alarms")
TIMES = ("1 time", "{count} times")


def counted(how_many: int, one: str, many: str) -> str:
    """A number of things: "1 step", "2,000 steps".

    Args:
        how_many: of them.
        one: what one of them is called, with its number.
        many: what others are, with a field for their number.
    """
    return phrase(one) if how_many == 1 else phrase(many, count=f"{how_many:,}")
