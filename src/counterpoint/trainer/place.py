"""Where a training is, and what its callbacks remember: what transformers keeps in no checkpoint.

Not here: writing and reading it (``resumable``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


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


def callback_states(callbacks: Sequence[Any]) -> dict[str, list[Any]]:
    """The states of callbacks that have a ``state_dict``, by the names of their classes.

    Args:
        callbacks: in their order.
    """
    states: dict[str, list[Any]] = {}
    for callback in callbacks:
        if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
            states.setdefault(type(callback).__name__, []).append(callback.state_dict())
    return states


def exported_states(callbacks: Sequence[Any]) -> dict[str, Any]:
    """The states of callbacks with transformers' own way of keeping one, as it writes them.

    Args:
        callbacks: in their order.
    """
    kept: dict[str, list[Any]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            kept.setdefault(type(callback).__name__, []).append(callback.state())
    return {name: states[0] if len(states) == 1 else states for name, states in kept.items()}


def load_callback_states(
    callbacks: Sequence[Any], own: Mapping[str, list[Any]], exported: Mapping[str, Any]
) -> None:
    """Give callbacks their states back; to those of one class in their order.

    Args:
        callbacks: in their order.
        own: of ``callback_states``.
        exported: of ``exported_states``.
    """
    with_own = [one for one in callbacks if hasattr(one, "load_state_dict")]
    for callback, state in _beside(with_own, own):
        callback.load_state_dict(state)
    listed = {name: one if isinstance(one, list) else [one] for name, one in exported.items()}
    exporting = [one for one in callbacks if isinstance(one, ExportableState)]
    for callback, state in _beside(exporting, listed):
        for name, value in state.get("attributes", {}).items():
            setattr(callback, name, value)


def _beside(callbacks: Sequence[Any], states: Mapping[str, list[Any]]) -> Iterator[tuple[Any, Any]]:
    """Callbacks beside their states."""
    left = {name: list(of_class) for name, of_class in states.items()}
    for callback in callbacks:
        if left.get(type(callback).__name__):
            yield callback, left[type(callback).__name__].pop(0)
