"""What the quickstart shows while it runs: lines, and a progress display.

The progress display is one line that rewrites itself on a terminal, and a few lines elsewhere.
Nothing is wider than ``WIDTH`` columns, except the name of a folder that is.

Not here: what the lines say (``run``, ``table``), and silencing the libraries (``trainer.alone``).
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WIDTH = 80
BAR = 18


def say(text: str = "") -> None:
    """One line, or several, on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Progress(TrainerCallback):
    """Steps done, loss, and how often chosen is preferred, if that is known.

    Args:
        label: what is being trained.
    """

    def __init__(self, label: str) -> None:
        """Nothing is shown yet."""
        self._label = label
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
            self._numbers += f"  chosen preferred {float(logs['rewards/accuracies']):4.0%}"
        if self._live:
            self._rewrite(state)
        else:
            say(f"   {self._label:<10}  {_steps(state)}  {self._numbers}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the line as it is."""
        if self._live:
            say()

    def _rewrite(self, state: TrainerState) -> None:
        full = BAR * state.global_step // max(1, state.max_steps)
        bar = "#" * full + "." * (BAR - full)
        line = f"   {self._label:<10}  {bar}  {_steps(state)}  {self._numbers}"
        sys.stdout.write("\r" + line[: WIDTH - 1].ljust(WIDTH - 1))
        sys.stdout.flush()


def _steps(state: TrainerState) -> str:
    total = str(state.max_steps)
    return f"{state.global_step:>{len(total)}}/{total}"
