"""Where a training is, which transformers keeps in no checkpoint.

Not here: writing and reading it (``resumable``), what callbacks remember
(``checkpoint.callbacks``).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class Place(TrainerCallback):
    """Where in its epochs a run is; told by the training loop itself.

    ``steps`` were done in epoch ``epoch``, and ``closed`` says that what comes at its end (log
    line, evaluation) has come.
    """

    def __init__(self) -> None:
        self.epoch, self.steps, self.closed = 0, 0, False

    def enter(self, epoch: int, steps: int) -> None:
        """An epoch begins, or resumes after some of its steps."""
        self.epoch, self.steps, self.closed = epoch, steps, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step was done; saving comes after."""
        self.steps += 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is done from here on belongs to the end of the epoch."""
        self.closed = True


class Interrupted(KeyboardInterrupt):
    """A signal ended the training.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number
        """What a shell reports of a process that a signal ended."""
