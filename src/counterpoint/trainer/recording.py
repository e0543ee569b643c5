"""When a training begins and how it ends, told to the run log.

Not here: what the run log makes of it (``runlog``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerState

from counterpoint.config import CPOConfig
from counterpoint.doctor.of_batch import idle_ranks
from counterpoint.errors import CounterpointError
from counterpoint.log import logger
from counterpoint.runlog import RunLog


class Beginning(TrainerCallback):
    """Tells that a training begins anew, and of how many steps either one is.

    A resumed one has said so when its checkpoint was found.
    """

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """What a checkpoint holds is read by now, and how many steps there will be is known."""
        if not state.global_step:
            self._run_log.begun()
        self._run_log.planned(state.max_steps)


class SamplesBefore(TrainerCallback):
    """Has a run write before its first step, so that before and after can be compared.

    Args:
        write: writes to the run's prompts.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write, unless the run resumes from a checkpoint or begins with an evaluation."""
        if state.global_step == 0 and not args.eval_on_start:
            logger().info("writing samples before the first step, to compare later ones with")
            self._write()


@contextmanager
def told_to_its_end(run_log: RunLog, state: Callable[[], TrainerState]) -> Iterator[None]:
    """Tell how what is done within ends.

    Args:
        run_log: of the run.
        state: gives the training's state, which a training makes anew.
    """
    try:
        yield
    except BaseException as error:
        run_log.ended(_state_after(error), state().global_step, error)
        raise
    now = state()
    run_log.ended("finished" if now.global_step >= now.max_steps else "stopped", now.global_step)


def _state_after(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    # an alarm ends a run as it was asked to
    by_alarm = isinstance(error, CounterpointError) and error.code == "CP402"
    return "stopped" if by_alarm else "failed"


def announce(objective: str, args: CPOConfig, ranks: int, *, examined: bool = False) -> None:
    """Say what will be optimised and how many pairs make a step.

    Args:
        objective: as a formula.
        args: the run's options.
        ranks: of the run.
        examined: the doctor has spoken of the options as they were given.
    """
    per_device, windows = args.per_device_train_batch_size, args.gradient_accumulation_steps
    logger().info("%s", objective)
    even = per_device * windows * ranks == args.step_pairs
    logger().info(
        "step = %d pairs (%s%d a device x %d accumulated x %d %s)",
        args.step_pairs,
        "" if even else "at most ",
        per_device,
        windows,
        ranks,
        "rank" if ranks == 1 else "ranks",
    )
    if args.step_pairs < ranks and not (examined and "pairs_per_step" in args.changed):
        logger().warning("CW129 %s", idle_ranks(args.step_pairs, ranks))
