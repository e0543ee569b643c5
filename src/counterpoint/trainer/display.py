"""What is seen of a run while it trains: a live panel on a terminal, plain lines elsewhere.

The panel has a bar with the time left, the numbers of the last log line, and the alarms; what is
logged or printed meanwhile scrolls by above it. It is drawn by the events of the training, and
while it waits for something else by the clock of ``phases``; no cursor is hidden, to be missed
after a crash. Elsewhere each log line is a line of at most ``PLAIN_WIDTH`` columns.

Not here: which numbers there are (``metrics``, ``pace``), files (``runlog``).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging as transformers_logging

from counterpoint.console.phases import Outlet, Phase, clock, columns, displace, phase, place
from counterpoint.metric_names import SHORT, WORDS
from counterpoint.runlog import Alarm, constraint_metrics, logger
from counterpoint.visible import visible

PLAIN_WIDTH = 80
WIDEST_BAR = 40
WIDTH_FOR_SPEEDS = 72
"""Columns from which pairs and tokens a second have room beside the bar."""

SHOWN_ALARMS = 3
"""Most alarms in view; a later one of the same code takes the place of the earlier."""

SECONDS_A_DRAW = 0.2
"""Between two drawings, unless something new has to be seen."""

TRANSFORMERS_OWN = (PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK)
"""What transformers shows by itself."""


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


class TrainingDisplay(TrainerCallback):
    """Shows how a training goes; in ``callbacks`` it takes the place of transformers' own display.

    A live panel where standard error is a terminal and ``disable_tqdm`` is False, else lines. Of
    several ranks the first one shows. Used as a context manager, or by ``CPOTrainer.train``, it
    leaves the terminal in order however a training ends.

    Args:
        stream: where it is shown; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Nothing is shown yet."""
        self._stream = stream
        self._view = View()
        self._live: Live | None = None
        self._moved: list[tuple[logging.StreamHandler[Any], TextIO]] = []
        self._drawn = 0.0
        self._bars = True
        self._outlet = Outlet(self._tell, logger().info)

    def __enter__(self) -> TrainingDisplay:
        """Nothing is shown before there is something to show."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last panel where it is, and the terminal to others."""
        self.close()

    # ---- the events of a training ----

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show the bar, empty or as full as the checkpoint that the run goes on from."""
        now = time.monotonic()
        self._view = View(state.global_step, state.max_steps, state.global_step, now)
        self._open(args, state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._view.step = state.global_step
        self._draw()

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Let the clock go on."""
        self._draw()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over a training line's numbers; write the line of anything else."""
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if not state.is_world_process_zero or "train_runtime" in numbers:
            return
        self._view.step, self._view.steps = state.global_step, state.max_steps
        if "loss" in numbers:
            self._view.numbers = numbers
        if "loss" in numbers and self._live is not None:
            self._draw(now=True)
        elif "loss" in numbers or _name_of(numbers) or _others(numbers):
            line = plain_line(self._view, numbers, time.monotonic())
            if self._live is None:
                self._write(line)
            else:
                self._live.console.print(Text(visible(line)))

    def on_prediction_step(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count a batch of an evaluation."""
        sized = _has_length(eval_dataloader)
        self._view.to_evaluate = len(eval_dataloader) if sized else None
        self._view.evaluated = (self._view.evaluated or 0) + 1
        if self._live is None:
            self._open(args, state)
        self._draw()

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """An evaluation is over."""
        self._view.evaluated = None
        if self._view.since:
            self._draw(now=True)
        else:
            self.close()  # it was not part of a training

    on_predict = on_evaluate

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the last panel where it is."""
        self.close()

    def sound(self, alarm: Alarm) -> None:
        """Keep an alarm in view."""
        self._view.alarms.pop(alarm.code, None)
        self._view.alarms[alarm.code] = alarm
        self._draw(now=True)

    def close(self) -> None:
        """Stop drawing; may be called at any time, and twice."""
        displace(self._outlet)
        live, self._live = self._live, None
        self._view.evaluated = None
        if live is not None:
            live.update(self._panel(live.console))
            for handler, stream in self._moved:
                handler.setStream(stream)
            live.stop()
            if self._bars:
                transformers_logging.enable_progress_bar()
        self._view, self._moved = View(), []

    # ---- drawing ----

    def _open(self, args: Any, state: TrainerState) -> None:
        stream = self._stream or sys.stderr
        if not state.is_world_process_zero or args.disable_tqdm or not stream.isatty():
            return
        console = Console(file=stream, highlight=False, force_jupyter=False)
        if console.is_dumb_terminal or not console.is_terminal:
            return
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # it would tear the panel with every save
        usual = (sys.stdout, sys.stderr)
        self._live = Live(
            self._panel(console),
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start(refresh=True)
        console.show_cursor(True)
        self._moved = [
            (handler, handler.stream) for handler in _handlers() if handler.stream in usual
        ]
        for handler, before in self._moved:
            handler.setStream(sys.stdout if before is usual[0] else sys.stderr)
        place(self._outlet)

    def _tell(self, phase: str) -> None:
        self._view.phase = phase
        self._draw(now=True)

    def _draw(self, now: bool = False) -> None:
        moment = time.monotonic()
        if self._live is not None and (now or moment - self._drawn >= SECONDS_A_DRAW):
            self._drawn = moment
            self._live.update(self._panel(self._live.console), refresh=True)

    def _panel(self, console: Console) -> Group:
        width = columns(console.file)
        console.width = width  # as it is now; Rich would look at standard input's
        plain = console.options.ascii_only
        return Group(*panel(self._view, width - 1, time.monotonic(), ascii_only=plain))

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(f"{visible(text)}\n")
        stream.flush()


def watch_alone(handler: CallbackHandler) -> None:
    """Where a ``TrainingDisplay`` shows a run, let nothing of transformers do it too.

    Args:
        handler: of a trainer's callbacks.
    """
    if any(isinstance(callback, TrainingDisplay) for callback in handler.callbacks):
        handler.callbacks = [
            each for each in handler.callbacks if not isinstance(each, TRANSFORMERS_OWN)
        ]


def evaluating(handler: CallbackHandler, loader: Any) -> AbstractContextManager[Phase]:
    """The phase of an evaluation, a batch at a time.

    Args:
        handler: of a trainer's callbacks; transformers' own bars tell of it themselves.
        loader: of the batches.
    """
    bars = (ProgressCallback, DEFAULT_PROGRESS_CALLBACK)
    if any(isinstance(callback, bars) for callback in handler.callbacks):
        return nullcontext(Phase("evaluating"))
    return phase("evaluating", len(loader) if _has_length(loader) else None, "batches")


# What is shown, as text


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
class Held:
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


def constraints_of(numbers: Mapping[str, float]) -> list[Held]:
    """The constraints of a training line, in their order.

    Args:
        numbers: of the line.
    """
    wanted = ("value", "bound", "multiplier")
    return [
        Held(name, *(one[key] for key in wanted))
        for name, one in constraint_metrics(numbers).items()
        if one.keys() >= set(wanted)
    ]


def _held(one: Held, ascii_only: bool, short: bool = False) -> str:
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


# The terminal


def _handlers() -> Iterable[logging.StreamHandler[Any]]:
    """Every handler of the process that writes to some stream."""
    named = list(logging.root.manager.loggerDict.values())
    loggers = [logging.root, *(one for one in named if isinstance(one, logging.Logger))]
    found = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [
        handler
        for handler in found.values()
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]


def _has_length(loader: Any) -> bool:
    try:
        return len(loader) >= 0
    except TypeError:  # of a stream
        return False
