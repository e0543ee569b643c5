"""What the quickstart shows while it runs: lines, and a progress display.

The progress display is one line that rewrites itself on a terminal, and a few lines elsewhere.
Nothing is wider than ``WIDTH`` columns, except the name of a folder that is.

Not here: what the lines say (``run``, ``table``), and silencing the libraries (``console.alone``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.language import phrase
from counterpoint.wrap import padded, width_of, wrap

WIDTH = 80
NARROWEST = 20
"""Columns below which folding helps nobody."""
BAR = 18


def tell(text: str = "", *, folded: bool = True) -> None:
    """One line, or several, on standard output.

    Args:
        text: of lines of at most ``WIDTH`` columns.
        folded: at the edge of a narrower terminal; a command to be copied is not.
    """
    width = width_of(sys.stdout)
    if folded and width is not None and width < WIDTH:
        lines = [part for line in text.splitlines() for part in _narrowed(line, width)]
        text = "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _narrowed(line: str, width: int) -> Iterator[str]:
    inset = " " * (len(line) - len(line.lstrip()))
    return wrap(line.strip(), max(NARROWEST, width), inset, inset + "  ")


def say_step(number: int, name: str, text: str, **values: Any) -> None:
    """A line of one of the five steps, in the language spoken; ``values`` as for ``phrase``."""
    tell(f"{number}  {padded(phrase(name), 22)}{phrase(text, **values)}")


class Progress(TrainerCallback):
    """Steps done, loss, and how often chosen is preferred, if that is known.

    Args:
        label: what is being trained.
    """

    def __init__(self, label: str) -> None:
        self._name = padded(phrase(label), 10)
        self._numbers = ""
        self._live = sys.stdout.isatty()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._live:
            self._rewrite(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over the numbers; where nothing can be rewritten, one line for them."""
        if not logs or "loss" not in logs:
            return
        self._numbers = f"loss {float(logs['loss']):6.3f}"
        if "rewards/accuracies" in logs:
            share = f"{float(logs['rewards/accuracies']):4.0%}"
            self._numbers += f"  {phrase('chosen preferred {share}', share=share)}"
        if self._live:
            self._rewrite(state)
        else:
            tell(f"   {self._name}  {_steps(state)}  {self._numbers}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the line as it is."""
        if self._live:
            tell()

    def _rewrite(self, state: TrainerState) -> None:
        full = BAR * state.global_step // max(1, state.max_steps)
        bar = "#" * full + "." * (BAR - full)
        line = f"   {self._name}  {bar}  {_steps(state)}  {self._numbers}"
        [line, *_] = wrap(line, WIDTH - 1)
        sys.stdout.write("\r" + padded(line, WIDTH - 1))
        sys.stdout.flush()


def _steps(state: TrainerState) -> str:
    total = str(state.max_steps)
    return f"{state.global_step:>{len(total)}}/{total}"
