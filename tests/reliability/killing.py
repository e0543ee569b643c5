"""Runs in processes of their own that are killed with SIGKILL, and the account of it.

A process is forked from a server that has imported everything, so that a life costs a second and
not ten. It goes on with ``auto`` after the newest good checkpoint, like a run that a scheduler
starts again and again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.checkpoint.folder import checkpoints
from tests.reliability.scenarios import SCENARIOS, differences, lines, trainer_of

SCENARIO = "dropout and a schedule"

LONG: dict[str, Any] = {"num_train_epochs": 4, "save_steps": 2, "logging_steps": 5}
"""Twelve steps and six checkpoints; log lines that span some of them."""

POLL = 0.0005
"""Seconds between two looks at a run's folder."""

SLOWEST = 300
"""Seconds after which a life that does not end is an error."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.reliability.killing"])


@dataclass(slots=True)
class Deaths:
    """How a run was killed until it was done.

    Args:
        kills: in all.
        inside: of these, while a checkpoint was being written.
        wrong: what differed from the unbroken run.
    """

    kills: int = 0
    inside: int = 0
    wrong: list[str] = field(default_factory=list)


def live(folder: Path, scenario: str, options: dict[str, Any]) -> None:
    """One life: train from the last checkpoint to the end, and save the model."""
    import torch

    torch.set_num_threads(1)
    # where there is a checkpoint, the model it goes into is another one
    drawn = os.getpid() if checkpoints(folder) else 0
    trainer = trainer_of(SCENARIOS[scenario], folder, drawn=drawn, **options)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()


def start(work: Callable[..., None], *facts: Any, log: Path | None = None) -> Any:
    """Begin a life; what it says goes to a file."""
    process = server.Process(target=_quietly, args=(work, log, *facts))
    process.start()
    return process


def killed_until_done(
    folder: Path, whole: Path, draw: random.Random, *, most: int, scenario: str = SCENARIO
) -> Deaths:
    """Kill a run again and again, let it end, and compare it with the unbroken one.

    Args:
        folder: of the run.
        whole: folder of the unbroken run.
        draw: says when.
        most: kills after which it is left alone.
        scenario: of ``SCENARIOS``.
    """
    deaths = Deaths()
    while True:
        process = start(live, folder, scenario, LONG, log=folder.with_suffix(".log"))
        if deaths.kills < most:
            inside = draw.random() < 0.5
            _wait_for_a_moment(process, folder, draw, inside=inside)
        else:
            process.join(SLOWEST)
        if process.exitcode is None:
            process.kill()
            process.join()
            deaths.kills += 1
            deaths.inside += any(folder.glob(".checkpoint-*.part"))
            continue
        if process.exitcode != 0:
            deaths.wrong.append(f"exit code {process.exitcode}: {_said(folder)}")
            return deaths
        break
    last = "checkpoint-12"
    deaths.wrong += differences(whole / last, folder / last, checked=False)
    if lines(folder) != lines(whole):
        deaths.wrong.append("the streams")
    (final,) = whole.glob("*.safetensors")
    if (folder / final.name).read_bytes() != final.read_bytes():
        deaths.wrong.append(f"the final {final.name}")
    return deaths


def _wait_for_a_moment(process: Any, folder: Path, draw: random.Random, *, inside: bool) -> None:
    """Until a random instant, of the whole life or within the writing of a checkpoint."""
    if inside:
        skipped = draw.randrange(3)
        with _deadline() as left:
            for _ in range(skipped + 1):
                while process.exitcode is None and not any(folder.glob(".checkpoint-*.part")):
                    left()
                    time.sleep(POLL)
                time.sleep(draw.uniform(0, 0.03))
                if skipped:
                    while process.exitcode is None and any(folder.glob(".checkpoint-*.part")):
                        left()
                        time.sleep(POLL)
                    skipped -= 1
        return
    process.join(draw.uniform(0, 2.5))


@contextmanager
def _deadline() -> Iterator[Callable[[], None]]:
    end = time.monotonic() + SLOWEST

    def left() -> None:
        if time.monotonic() > end:
            raise TimeoutError("a run neither saved nor ended")

    yield left


def _quietly(work: Callable[..., None], log: Path | None, *facts: Any) -> None:
    import warnings

    warnings.simplefilter("ignore")
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    work(*facts)
    sys.stdout.flush()


def _said(folder: Path) -> str:
    log = folder.with_suffix(".log")
    return log.read_text(errors="replace")[-2000:] if log.is_file() else ""
