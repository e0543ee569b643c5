"""Checks of what a model writes: the same prompts before and now, alarms out.

A text that went wrong is no measurement with noise, but which prompts it happens to is; so the
prompts that went wrong are weighed against those that came right by the sign test.

Not here: generating (the evaluation does), and what counts as a repetition there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from counterpoint.alarms.remedies import Facts, halve_the_rate, hold_the_chosen
from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.runlog import RUN_FILE, SAMPLES, Alarm, pictures_in_line, read_run

Sample = Mapping[str, Any]
"""A line of samples.jsonl: step, kind, prompt, completion, tokens, ended, repetition, maybe set."""

CHANCE = 1 / 32
"""Most probable an outcome of tossed coins that is still no chance: five of five, nine of ten.

Looks at samples are few, a run's evaluations, so that no finer sieve is needed; but of fewer
than five prompts nothing can be said.
"""

REPETITIVE = 0.5
"""Share of a text that repeats what stands in it already, from which it is degenerate."""

LONGER = 2.0
"""Factor by which a text has run away."""


def degenerate_in_run(
    folder: str | Path, samples_now: Sequence[Sample], facts: Facts | None = None
) -> tuple[Alarm, ...]:
    """``degenerate`` against the run's own earlier samples, as they lie in its directory.

    So nothing has to be remembered, and a resumed run compares with its first look too.

    Args:
        folder: the run directory.
        samples_now: of one look, all of one set; whether they are written already does not matter.
        facts: of the run, for the line to paste.

    Returns:
        The alarms that begin now; none, with a warning, where the earlier samples cannot be read.
    """
    if not samples_now or not (Path(folder) / RUN_FILE).is_file():
        return ()
    step, of = samples_now[0]["step"], samples_now[0].get("set")
    try:
        samples = read_run(folder, (SAMPLES,)).samples
    except SetupError as error:  # a line that was spoilt from outside ends no training
        logger().warning("samples are not compared with earlier ones: %s", error)
        return ()
    earlier = [s for s in samples if s["step"] < step and s.get("set") == of]
    return degenerate(earlier, samples_now, facts)


def degenerate(
    samples_before: Sequence[Sample], samples_now: Sequence[Sample], facts: Facts | None = None
) -> tuple[Alarm, ...]:
    """The alarms that begin with a look at what the model writes.

    Args:
        samples_before: of the run's earlier looks, in order; the first one is compared with.
        samples_now: of this look; prompts that the first one lacks are passed over.
        facts: of the run, for the line to paste.

    Returns:
        CW431 for texts that repeat themselves, CW432 for empty ones, CW433 for texts that do
        not end any more or are twice as long; those that the look before this one had already
        are left out.
    """
    if not samples_before or not samples_now:
        return ()
    looks: dict[int, list[Sample]] = {}
    for sample in samples_before:
        looks.setdefault(sample["step"], []).append(sample)
    first, *_, last = looks.values() if len(looks) > 1 else (*looks.values(), ())
    had = {alarm.code for alarm in _found(first, last, facts)}
    return tuple(one for one in _found(first, samples_now, facts) if one.code not in had)


def _found(before: Sequence[Sample], now: Sequence[Sample], facts: Facts | None) -> Iterable[Alarm]:
    earlier = {_of_what(one): one for one in before}
    both = [(earlier[_of_what(one)], one) for one in now if _of_what(one) in earlier]
    for code, worse, what in _CHECKS:
        went = [now for then, now in both if worse(then, now)]
        came = sum(worse(now, then) for then, now in both)
        if went and by_chance(len(went), came) <= CHANCE:
            step = int(went[0]["step"])
            seen = f"{len(went)} of {len(both)} samples {what}"
            text = " ".join(str(went[0]["completion"]).split())[:60]
            fix = _fix(code, facts)
            yield Alarm(code, step, step, f'{seen}, such as "{text}".', fix)


def _of_what(sample: Sample) -> tuple[str, ...]:
    asked = str(sample.get("set", "")), str(sample["kind"]), str(sample["prompt"])
    return *asked, *pictures_in_line(sample)


def _fix(code: str, facts: Facts | None) -> str:
    if facts is None:
        return ""
    return hold_the_chosen(facts) if code == "CW431" else halve_the_rate(facts)


def by_chance(went: int, came: int) -> float:
    """Probability that so many of these or more go one way if each falls either way by chance.

    Args:
        went: that went wrong.
        came: that came right.
    """
    both = went + came
    ways: int = sum(comb(both, k) for k in range(went, both + 1))
    return ways / (1 << both)


def _repeats(then: Sample, now: Sample) -> bool:
    return bool(then["repetition"] < REPETITIVE <= now["repetition"])


def _empties(then: Sample, now: Sample) -> bool:
    return bool(str(then["completion"]).strip() and not str(now["completion"]).strip())


def _runs_away(then: Sample, now: Sample) -> bool:
    longer = now["tokens"] >= LONGER * max(1, then["tokens"])
    return bool((then["ended"] and not now["ended"]) or longer)


_CHECKS: tuple[tuple[str, Callable[[Sample, Sample], bool], str], ...] = (
    ("CW431", _repeats, "repeat themselves and did not before"),
    ("CW432", _empties, "are empty and were not before"),
    ("CW433", _runs_away, "do not end any more, or are twice as long as before"),
)
