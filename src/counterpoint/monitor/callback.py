"""The monitor as a callback of transformers' trainer: when to look, and whom to tell.

Looks are close together at first (after steps 1, 2, 5, 10, 20, 50, ...), then ``monitor_steps``
apart, and one is taken at the end. Which ranks look the engine says: where each has the whole
model and the gradients of all ranks, rank 0 alone. Where each has a part of it, all look, see the
same and raise the same alarms; the run log of rank 0 is the one that writes.

Not here: what a look is (``watch``), what an alarm does (``trainer``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from transformers import TrainerCallback

from counterpoint.engine.face import Engine
from counterpoint.engine.plain import Plain
from counterpoint.log import logger
from counterpoint.monitor.judge import Judge
from counterpoint.monitor.look import Look
from counterpoint.monitor.watch import MovementWatch
from counterpoint.runlog import Alarm

NOTHING: Mapping[str, Any] = MappingProxyType({"facts": {}, "tensors": {}})
"""The state where nothing is watched."""

EARLY = (1, 2, 5)
"""Steps that are looked at whatever ``monitor_steps`` is, and ten, a hundred, ... times these."""


def is_look(step: int, every: int) -> bool:
    """Whether a step is looked at.

    Args:
        step: optimizer step, from 1.
        every: steps between two looks, at least 1.
    """
    if step >= every:
        return step % every == 0
    digits = str(step)
    return int(digits[0]) in EARLY and not digits[1:].strip("0")


class Monitor(TrainerCallback):
    """Looks at a run's parameters now and then, writes what it sees, and raises alarms.

    Args:
        every: steps between two looks, at least 1.
        write: takes a look, ready for ``movement.jsonl``.
        raise_alarm: takes an alarm.
        engine: of the run; of one process without.
    """

    def __init__(
        self,
        every: int,
        write: Callable[[Mapping[str, Any]], None],
        raise_alarm: Callable[[Alarm], None],
        engine: Engine | None = None,
    ) -> None:
        self.every, self._write, self._raise_alarm = every, write, raise_alarm
        self._engine = engine or Plain()
        self._watch: MovementWatch | None = None
        self._judge = Judge()
        self._restored: Mapping[str, Any] | None = None
        self._resumed = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **kwargs: Any
    ) -> None:
        """Take the start, or resume from the state of another process."""
        self._watch, self._judge, self._resumed = None, Judge(), False
        if not self._engine.watches or not any(p.requires_grad for p in model.parameters()):
            return
        self._watch = MovementWatch(model, optimizer, state.global_step, self._engine)
        self._take_over(self._watch)

    def _take_over(self, watch: MovementWatch) -> None:
        """Resume from the state of another process, if there is one."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        self._resumed = True
        if watch.load_state_dict(restored):
            self._judge = Judge(**restored["facts"]["judge"])
        else:
            _tell_of_others(watch)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See the gradients; after clipping, before the weights move."""
        if self._watch is not None:
            self._watch.before_step(look=self._looks(state))

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """See what became of the weights."""
        if self._watch is None:
            return
        look = self._watch.after_step(
            state.global_step + 1,
            look=self._looks(state),
            skipped=bool(getattr(optimizer, "step_was_skipped", False)),
            final=state.global_step + 1 >= state.max_steps,
        )
        if look is not None:
            self._tell(look, self._watch)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look once more, where the run was ended before its last step."""
        watch, self._watch = self._watch, None
        # the best model's weights may be there again, which are not those of this step
        if watch is None or watch.last == state.global_step or args.load_best_model_at_end:
            return
        self._tell(watch.look_back(state.global_step), watch)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to resume as if it had never stopped.

        Returns:
            "facts", ready for JSON, and "tensors", by name and on the CPU; both empty where
            nothing is watched: before and after training, and on ranks other than 0. Where ranks
            hold shards too, each of which has its own: see ``rank_state_dict``.
        """
        return dict(NOTHING) if self._engine.shards else self._state()

    def rank_state_dict(self) -> dict[str, Any]:
        """The same of what this rank alone has: of its shards; empty where there are none."""
        return self._state() if self._engine.shards else dict(NOTHING)

    def _state(self) -> dict[str, Any]:
        if self._watch is None:
            return dict(NOTHING)
        state = self._watch.state_dict()
        state["facts"]["judge"] = self._judge.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a ``state_dict``, at once or when training begins next.

        Args:
            state: of a run with the same parameters; one of others is passed over, with a
                warning, and an empty one is none.
        """
        if state["facts"]:
            self._restored = state
            if self._watch is not None:
                self._take_over(self._watch)
        elif self._watch is not None and not self._resumed:  # of shards, and not of these
            self._resumed = True
            _tell_of_others(self._watch)

    def _looks(self, state: Any) -> bool:
        step = state.global_step + 1
        return is_look(step, self.every) or step >= state.max_steps

    def _tell(self, look: Look, watch: MovementWatch) -> None:
        self._write(look.as_dict())
        for alarm in self._judge.judge(look, watch.unchanged):
            self._raise_alarm(alarm)


def _tell_of_others(watch: MovementWatch) -> None:
    logger().warning(
        "the monitor's checkpoint is of other parameters than those that train now, or of other "
        "shards; movement is counted from step %d on.",
        watch.since,
    )
