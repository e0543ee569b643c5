"""Signals end a run after its running step, saved, with the code that shells report."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from counterpoint.checkpoint.folder import checkpoints
from counterpoint.checkpoint.manifest import verify
from counterpoint.runlog import read_run
from tests.reliability.killing import start

OPTIONS = {
    "model": "model",
    "dataset": "pairs.jsonl",
    "output_dir": "out",
    "max_steps": "3000",
    "lr_scheduler_type": "constant",
    "save_steps": "1000",
    "logging_steps": "1",
    "per_device_train_batch_size": "2",
}
WORDS = [
    "train",
    *(w for n, v in OPTIONS.items() for w in (f"--{n}", v)),
    "--use_cpu",
    "--no_doctor",
]


def run_command(folder: Path, slow: bool, words: list[str]) -> None:
    """The command in a process of its own; ``slow`` makes its third step last for a minute."""
    from counterpoint import CPOTrainer
    from counterpoint.cli.main import main

    os.chdir(folder)
    if slow:
        step = CPOTrainer.training_step

        def slowly(self: CPOTrainer, *facts: Any, **more: Any) -> Any:
            if self.state.global_step == 2:
                Path("third").touch()
                time.sleep(60)
            return step(self, *facts, **more)

        CPOTrainer.training_step = slowly
    sys.exit(main(words))


def wait_for(path: Path, process: Any) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.exitcode is None, "it ended too early"
        assert time.monotonic() < until, "it did not begin"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    workshop: Path, tmp_path: Path, number: int, code: int
) -> None:
    said = tmp_path / "said"
    process = start(run_command, workshop, False, WORDS, log=said)
    wait_for(workshop / "out" / "metrics.jsonl", process)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == code, said.read_text()
    (saved,) = checkpoints(workshop / "out")
    manifest = verify(saved)
    assert manifest.step == read_run(workshop / "out").metrics[-1]["step"] < 3000
    text = said.read_text()
    assert "counterpoint: ending after this step, with a checkpoint; once more ends" in text
    assert (
        f"interrupted. The last checkpoint is out/{saved.name}; resume with --resume auto" in text
    )
    again = [*WORDS, "--max_steps", str(manifest.step + 1), "--resume", "auto"]
    process = start(run_command, workshop, False, again, log=said)
    process.join(120)
    assert process.exitcode == 0, said.read_text()
    steps = [line["step"] for line in read_run(workshop / "out").metrics if "loss" in line]
    assert steps == list(range(1, manifest.step + 2))


def test_a_second_signal_ends_a_run_at_once(workshop: Path, tmp_path: Path) -> None:
    process = start(run_command, workshop, True, WORDS, log=tmp_path / "said")
    wait_for(workshop / "third", process)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    while "once more ends" not in (tmp_path / "said").read_text():
        assert time.monotonic() < began + 50
        time.sleep(0.01)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGTERM)
    process.join(50)
    assert process.exitcode == 143
    assert checkpoints(workshop / "out") == []
