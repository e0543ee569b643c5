"""Law 4 under SIGKILL: a handful here, hundreds with ``make torture``."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from counterpoint import SetupError
from counterpoint.checkpoint.lock import LOCK, locked
from tests.reliability.killing import LONG, SCENARIO, killed_until_done, live, start

KILLS = {SCENARIO: 5, "an encoder-decoder with dropout": 3}


@pytest.mark.parametrize("scenario", KILLS)
def test_a_run_killed_at_random_ends_as_the_unbroken_one(scenario: str, tmp_path: Path):
    whole = tmp_path / "whole"
    process = start(live, whole, scenario, LONG, log=whole.with_suffix(".log"))
    process.join(120)
    assert process.exitcode == 0, whole.with_suffix(".log").read_text()[-2000:]
    deaths = killed_until_done(
        tmp_path / "run", whole, random.Random(7), most=KILLS[scenario], scenario=scenario
    )
    assert deaths.wrong == []
    assert deaths.kills >= 1


def hold(folder: Path) -> None:
    """Hold the lock of a folder until killed."""
    with locked(folder):
        (folder / "holding").touch()
        time.sleep(600)


def test_two_runs_cannot_write_in_one_folder_and_a_lock_dies_with_its_owner(tmp_path: Path):
    owner = start(hold, tmp_path)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "holding").exists() and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(SetupError, match=rf"CP516 .*in use by .*process {owner.pid} "):
            locked(tmp_path).__enter__()
    finally:
        owner.kill()
        owner.join()
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
        with locked(tmp_path):  # its owner may take it twice
            pass
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()
