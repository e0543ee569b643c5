"""What is seen of a run while it trains: a live panel on a terminal, plain lines elsewhere.

The panel has a bar with the time left, the numbers of the last log line, and the alarms; what is
logged or printed meanwhile scrolls by above it. It is drawn by the events of the training, and
while it waits for something else by the clock of ``phases``; no cursor is hidden, to be missed
after a crash. Elsewhere each log line is a line of at most ``PLAIN_WIDTH`` columns.

Not here: the lines themselves (``panel``), the numbers (``metrics``), files (``runlog``).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging as transformers_logging

from counterpoint.console.panel import View, has_something, panel, plain_line
from counterpoint.console.phases import Outlet, Phase, displace, phase, place, stream_columns
from counterpoint.log import logger
from counterpoint.runlog import Alarm
from counterpoint.visible import visible

SECONDS_A_DRAW = 0.2
"""Between two drawings, unless something new has to be seen."""

TRANSFORMERS_OWN = (PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK)
"""What transformers shows by itself."""


class TrainingDisplay(TrainerCallback):
    """Shows how a training goes; in ``callbacks`` it takes the place of transformers' own display.

    A live panel where standard error is a terminal and ``disable_tqdm`` is False, else lines. Of
    several ranks the first one shows. Used as a context manager, or by ``CPOTrainer.train``, it
    leaves the terminal in order however a training ends.

    Args:
        stream: where it is shown; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
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

    def __exit__(self, *error: object) -> None:
        """Leave the last panel where it is, and the terminal to others."""
        self.close()

    # ---- the events of a training ----

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show the bar, empty or as full as the checkpoint that the run resumes from."""
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
        elif has_something(numbers):
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

    def show_alarm(self, alarm: Alarm) -> None:
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
        width = stream_columns(console.file)
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
