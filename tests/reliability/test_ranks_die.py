"""A rank that is killed: the others leave within half a minute, and say why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from counterpoint.runlog import read_run
from tests.cli.conftest import pattern
from tests.reliability.trials import TORTURE

__all__ = ["pattern"]

ROOT = Path(__file__).parents[2]
WITHIN = 30.0
"""Seconds."""

COMMAND = [
    *("-m", "counterpoint", "train", "--model", "model", "--dataset", "pairs.jsonl"),
    *("--per_device_train_batch_size", "2", "--logging_steps", "1", "--doctor", "off"),
]
TRAIN = [*COMMAND, *("--output_dir", "out", "--max_steps", "100000", "--save_strategy", "no")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def place(tmp_path: Path, pattern: Path) -> Path:
    """A folder with model and data, where the run takes place."""
    for name in ("model", "pairs.jsonl"):
        (tmp_path / name).symlink_to(pattern / name)
    return tmp_path


def until_it_trains(place: Path, process: subprocess.Popen[str]) -> None:
    metrics, end = place / "out" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size > 500):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it does not begin to train"
        time.sleep(0.1)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test, of which none outlives it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_other_rank_names_the_one_that_is_gone(
    place: Path, started: list[subprocess.Popen[str]]
) -> None:
    port = str(free_port())
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        started.append(
            subprocess.Popen(
                [sys.executable, *TRAIN],
                env={**environment(), **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                cwd=place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    until_it_trains(place, started[0])
    started[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = started[0].communicate(timeout=WITHIN)
    assert time.monotonic() - killed < WITHIN
    assert started[0].returncode == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("counterpoint")]
    assert line.startswith(
        "counterpoint [rank 0]: CP404 rank 0 of 2 stops: another rank of the run"
    )
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.skipif(not TORTURE, reason="three more processes to start; make torture runs it")
def test_under_torchrun_nothing_is_left_running(
    place: Path, started: list[subprocess.Popen[str]]
) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ports = ["--master-port", str(free_port())]
    started.append(
        subprocess.Popen(
            [sys.executable, *launcher, *ports, *TRAIN],
            env=environment(),
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    until_it_trains(place, started[0])
    ranks = psutil.Process(started[0].pid).children()
    victim = next(one for one in ranks if one.environ().get("RANK") == "1")
    victim.kill()
    killed = time.monotonic()
    _, err = started[0].communicate(timeout=WITHIN)
    assert time.monotonic() - killed < WITHIN
    assert started[0].returncode != 0
    assert "Signal 9 (SIGKILL)" in err
    assert not [one for one in ranks if one.is_running() and one.status() != "zombie"]


@pytest.mark.slow
@pytest.mark.skipif(not TORTURE, reason="three runs of two processes; make torture runs it")
def test_torchrun_begins_again_where_the_killed_rank_left_and_ends_with_the_same_weights(
    place: Path, started: list[subprocess.Popen[str]]
) -> None:
    def launched(folder: str, *launcher: str) -> subprocess.Popen[str]:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *launcher]
        steps = ["--max_steps", "60", "--save_steps", "2", "--resume", "auto", "--use_cpu"]
        process = subprocess.Popen(
            [
                *(sys.executable, *torchrun, "--master-port", str(free_port())),
                *(*COMMAND, *steps, "--output_dir", folder),
            ],
            env=environment(),
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    whole = launched("whole")
    _, err = whole.communicate(timeout=240)
    assert whole.returncode == 0, err
    broken, end = launched("out", "--max-restarts", "1"), time.monotonic() + 120
    while not list((place / "out").glob("checkpoint-*/manifest.json")):
        assert broken.poll() is None, broken.communicate()
        assert time.monotonic() < end, "it saves nothing"
        time.sleep(0.05)
    ranks = psutil.Process(broken.pid).children()
    next(one for one in ranks if one.environ().get("RANK") == "1").kill()
    _, err = broken.communicate(timeout=240)
    assert broken.returncode == 0, err
    weights = [(place / run / "model.safetensors").read_bytes() for run in ("whole", "out")]
    assert weights[0] == weights[1]
    run = read_run(place / "out")
    assert run.facts["resumed"][0]["step"] >= 2
    assert [line["step"] for line in run.metrics if "loss" in line] == list(range(1, 61))
