"""The lines that show a training: those of the live panel, and a log line in 80 columns.

Not here: when they are shown (``display``), which numbers there are (``metrics``,
``monitor.pace``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.text import Text

from counterpoint.console.phases import clock
from counterpoint.metric_names import SHORT, WORDS
from counterpoint.runlog import Alarm, constraint_metrics
from counterpoint.visible import visible

PLAIN_WIDTH = 80
WIDEST_BAR = 40
WIDTH_FOR_SPEEDS = 72
"""Columns from which pairs and tokens a second have room beside the bar."""

SHOWN_ALARMS = 3
"""Most alarms in view; a later one of the same code takes the place of the earlier."""


@dataclass(slots=True)
class View:
    """What is known of a run at a moment, as far as it is shown.

    Args:
        step: optimizer steps done.
        steps: of the whole run; 0 while that is not known.
        first_step: where this process began.
        since: time at which it began, in seconds of ``time.monotonic``.
        numbers: of the last training log line.
        evaluated: evaluation batches done; None while none is made.
        to_evaluate: of how many; None where that is not known.
        alarms: by code, the newest last.
        phase: what is done besides steps, where that takes long.
    """

    step: int = 0
    steps: int = 0
    first_step: int = 0
    since: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    evaluated: int | None = None
    to_evaluate: int | None = None
    alarms: dict[str, Alarm] = field(default_factory=dict)
    phase: str = ""


def panel(view: View, width: int, now: float, *, ascii_only: bool = False) -> list[Text]:
    """The lines of the live panel.

    Args:
        view: of the run.
        width: columns that a line may have, at least 20.
        now: seconds of ``time.monotonic``.
        ascii_only: draw with ASCII alone.
    """
    parts, speeds = _parts(view.numbers), _speeds(view.numbers)
    lines = []
    if view.since:
        beside = width >= WIDTH_FOR_SPEEDS
        lines.append(_bar(view, width, now, speeds if beside else [], ascii_only))
        parts += [] if beside else speeds
    if view.phase:
        lines.append(Text(view.phase, style="cyan"))
    elif view.evaluated is not None:
        of = "" if view.to_evaluate is None else f" of {view.to_evaluate:,}"
        lines.append(Text(f"evaluating, batch {view.evaluated:,}{of}", style="cyan"))
    lines += [Text(line) for line in _wrapped(parts, width)]
    held = [(_held(one, ascii_only), one.violated) for one in constraints_of(view.numbers)]
    lines += [Text(visible(told), style="yellow" if over else "") for told, over in held]
    alarms = list(view.alarms.values())[-SHOWN_ALARMS:]
    lines += [
        Text(f"{a.code} since step {a.since:,}: {visible(a.seen)}", style="yellow") for a in alarms
    ]
    for line in lines:
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return lines


def plain_line(view: View, numbers: Mapping[str, float], now: float | None = None) -> str:
    """A log line in at most ``PLAIN_WIDTH`` columns.

    Args:
        view: of the run.
        numbers: of a training, of an evaluation, or any others.
        now: seconds of ``time.monotonic``, to say how much time is left.
    """
    begin = f"step {view.step:,}/{view.steps:,}" if view.steps else f"step {view.step:,}"
    if "loss" in numbers:
        left = _left(view, now) if now is not None else ""
        worst_first = sorted(constraints_of(numbers), key=lambda one: not one.violated)
        held = [_held(one, ascii_only=True, short=True) for one in worst_first]
        told = _parts(numbers)
        parts = [*told[:2], *held, *told[2:], *_speeds(numbers)]
        return _fitting([begin, *parts], [f"{left} left"] if left else [])
    return _fitting([f"{begin}  {_name_of(numbers)}", *_others(numbers)], [])


def has_something(numbers: Mapping[str, float]) -> bool:
    """Whether a log line has a number that is shown."""
    return "loss" in numbers or bool(_name_of(numbers) or _others(numbers))


def _bar(view: View, width: int, now: float, beside: list[str], ascii_only: bool) -> Text:
    counted = f"{view.step:,}/{view.steps:,}" if view.steps else f"step {view.step:,}"
    share = view.step / view.steps if view.steps else 0.0
    done = view.steps and view.step >= view.steps
    time_left = f"in {clock(now - view.since)}" if done else f"{_left(view, now) or '-:--'} left"
    end = "  ".join([f" {share:4.0%}", *beside, time_left])
    room = min(WIDEST_BAR, width - len(counted) - len(end) - 2)
    if room < 5:
        return Text(f"{counted} {end}")
    full = int(room * share)
    marks = "#-" if ascii_only else "━─"
    return Text.assemble(
        counted, "  ", (marks[0] * full, "green"), (marks[1] * (room - full), "dim"), end
    )


def _parts(numbers: Mapping[str, float]) -> list[str]:
    """The numbers of a training line as people read them, the most telling first."""
    shares = ("rewards/accuracies",)
    told = [
        (SHORT.get(word, word), numbers[name], name in shares)
        for name, word in WORDS.items()
        if name in numbers
    ]
    return [f"{word} {x:.0%}" if share else f"{word} {_number(x)}" for word, x, share in told]


@dataclass(frozen=True, slots=True)
class ShownConstraint:
    """A constraint in a log line.

    Args:
        name: of the constraint.
        value: over the steps of the line.
        bound: of it.
        multiplier: after them.
    """

    name: str
    value: float
    bound: float
    multiplier: float

    @property
    def violated(self) -> bool:
        """Whether the value is above its bound."""
        return self.value > self.bound


def constraints_of(numbers: Mapping[str, float]) -> list[ShownConstraint]:
    """The constraints of a training line, in their order.

    Args:
        numbers: of the line.
    """
    wanted = ("value", "bound", "multiplier")
    return [
        ShownConstraint(name, *(one[key] for key in wanted))
        for name, one in constraint_metrics(numbers).items()
        if one.keys() >= set(wanted)
    ]


def _held(one: ShownConstraint, ascii_only: bool, short: bool = False) -> str:
    """A constraint as people read it: its value, whether it is above the bound, the multiplier."""
    sign = (">" if one.violated else "<=") if ascii_only else (">" if one.violated else "≤")
    value, bound = _number(one.value), _number(one.bound)
    if short:
        return f"{one.name} {value}{sign}{bound} {SHORT['multiplier']} {one.multiplier:.3g}"
    return f"{one.name} {value} {sign} {bound}, multiplier {one.multiplier:.3g}"


def _speeds(numbers: Mapping[str, float]) -> list[str]:
    found = {unit: numbers.get(f"{unit}_per_second") for unit in ("pairs", "tokens")}
    return [f"{_rate(x)} {unit}/s" for unit, x in found.items() if x is not None]


def _name_of(numbers: Mapping[str, float]) -> str:
    """What an evaluation's numbers are of: the text before their "_runtime"."""
    names = [name.removesuffix("_runtime") for name in numbers if name.endswith("_runtime")]
    return names[0] if names else ""


def _others(numbers: Mapping[str, float]) -> list[str]:
    """The numbers of an evaluation, or of whatever was logged, without a common beginning."""
    name = _name_of(numbers)
    own = {key.removeprefix(f"{name}_") if name else key: x for key, x in numbers.items()}
    told = _parts(own)
    untold = [
        f"{key} {_number(x)}"
        for key, x in own.items()
        if "/" not in key and not key.endswith(("_second", "runtime", "loss")) and key != "epoch"
    ]
    return [*told[:2], *_held_out(own), *told[2:], *untold]


def _held_out(numbers: Mapping[str, float]) -> list[str]:
    """The constraints of an evaluation, violated ones first."""
    found = []
    for name, one in constraint_metrics(numbers).items():
        if one.keys() >= {"value", "violation"}:
            above = one["violation"] > 0
            told = f"{name} {_number(one['value'])}{'>' if above else '<='}"
            found.append((not above, told + _number(one["value"] - one["violation"])))
    return [told for _, told in sorted(found, key=lambda one: one[0])]


def _fitting(parts: Iterable[str], last: list[str]) -> str:
    """Parts side by side as long as there is room, the last ones in any case."""
    line, end = "", "".join(f"  {part}" for part in last)
    for part in parts:
        wider = f"{line}  {part}" if line else part
        if len(wider) + len(end) > PLAIN_WIDTH:
            break
        line = wider
    return (line + end)[:PLAIN_WIDTH]


def _wrapped(parts: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        wider = f"{lines[-1]}  {part}" if lines else ""
        if lines and len(wider) <= width:
            lines[-1] = wider
        else:
            lines.append(part)
    return lines


def _left(view: View, now: float) -> str:
    """Time to the last step, evaluations included, at the mean pace so far; "" if not known."""
    done = view.step - view.first_step
    if not (view.since and view.steps and done > 0):
        return ""
    return clock((now - view.since) / done * (view.steps - view.step))


def _number(x: float) -> str:
    """In few columns, and always as many of the same size."""
    size = abs(x)
    if size < 0.001:
        return f"{x:.1e}" if x else "0"
    places = 4 if size < 1 else 3 if size < 10 else 2 if size < 1000 else 0
    return f"{x:,.{places}f}"


def _rate(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
