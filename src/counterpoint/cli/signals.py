"""SIGTERM and Ctrl-C end a run after its running step; a second one ends it at once.

A checkpoint of the step is saved unless ``save_strategy`` is no.

Not here: what is saved (``trainer.resumable``) and the exit code (``main``).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transformers.trainer_utils import SaveStrategy

from counterpoint.console.manners import complain
from counterpoint.trainer.place import Interrupted
from counterpoint.trainer.resumable import ResumableTrainer

HEEDED = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heeded(trainer: ResumableTrainer) -> Iterator[None]:
    """While open, the two signals are the trainer's; afterwards whoever's they were.

    Args:
        trainer: of this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may be told of signals
        return
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in HEEDED}

    def first(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a data worker, which Ctrl-C reaches too; its owner ends it
        trainer.end_after_step(number)
        for other in HEEDED:
            signal.signal(other, at_once)
        complain(f"ending after this step{saved}; once more ends at once")

    def at_once(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Interrupted(number)

    saved = "" if trainer.args.save_strategy == SaveStrategy.NO else ", with a checkpoint"
    trainer.heeds_signals = True
    for number in HEEDED:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
