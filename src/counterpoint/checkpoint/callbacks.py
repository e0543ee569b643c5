"""What the callbacks of a training remember, which transformers keeps in no checkpoint of its own.

Not here: where a training is (``trainer.place``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers.trainer_callback import ExportableState


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
