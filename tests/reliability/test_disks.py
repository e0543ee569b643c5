"""A disk that refuses: the last good checkpoint stays, and one line says what happened."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterpoint import SetupError
from counterpoint.checkpoint.folder import checkpoints, last_good
from counterpoint.checkpoint.manifest import verify
from tests.reliability.killing import start
from tests.reliability.scenarios import differences, lines, trainer_of

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Lets some calls of ``os.fsync`` for checkpoints through, then raises, once or for good."""

    def __init__(self, good: int, error: OSError, times: int = 10**9) -> None:
        self.good, self.error, self.times, self.calls = good, error, times, 0
        self.original = os.fsync

    def __call__(self, handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if "run.json" in place.name or "run" not in place.parts[:-1]:
            self.original(handle)  # the run's account of itself, and what its folder lies in
            return
        self.calls += 1
        if self.good < self.calls <= self.good + self.times:
            raise self.error
        self.original(handle)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unbroken run, and how many times it asks the disk to keep something."""
    folder = tmp_path_factory.mktemp("reliability") / "run"
    trainer_of({}, folder, max_steps=3).train()
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many times two steps with a checkpoint each ask the disk to keep something."""
    disk = Disk(10**9, FULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", disk)
        trainer_of({}, tmp_path_factory.mktemp("calls") / "run", max_steps=2).train()
    return disk.calls


@pytest.mark.parametrize("share", [0.52, 0.6, 0.7, 0.8, 0.9, 0.94])
def test_a_disk_that_fills_up_while_saving_leaves_the_last_checkpoint(
    a_run: Path, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
):
    """At moments all through the second of two checkpoints."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(int(share * calls), FULL))
        with pytest.raises(SetupError, match=r"CP515 .*could not be saved: No space") as caught:
            trainer_of({}, folder, max_steps=3).train()
    assert f"The last one is {folder / 'checkpoint-1'}." in str(caught.value)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1"]
    verify(folder / "checkpoint-1", step=1)
    assert not list(folder.glob(".*"))
    trainer_of({}, folder, drawn=9, max_steps=3).train(resume_from_checkpoint="auto")
    assert differences(a_run / "checkpoint-3", folder / "checkpoint-3") == []
    assert lines(folder) == lines(a_run)


def test_an_error_that_passes_is_waited_for(
    a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("counterpoint.checkpoint.saving.WAITS", (0.0, 0.0))
    monkeypatch.setattr(os, "fsync", Disk(5, OSError(errno.EIO, "I/O error"), times=1))
    trainer_of({}, tmp_path / "run", max_steps=3).train()
    assert "I/O error; trying again in 0 seconds" in caplog.text
    assert differences(a_run / "checkpoint-1", tmp_path / "run" / "checkpoint-1") == []


def test_an_error_that_does_not_pass_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("counterpoint.checkpoint.saving.WAITS", (0.0, 0.0))
    disk = Disk(0, OSError(errno.EIO, "I/O error"))
    monkeypatch.setattr(os, "fsync", disk)
    with pytest.raises(SetupError, match=r"CP515 .*I/O error\. There is none before it\."):
        trainer_of({}, tmp_path / "run", max_steps=3).train()
    assert not list((tmp_path / "run").glob("*checkpoint*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_folder_that_cannot_be_written_any_more_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr("counterpoint.checkpoint.saving.begin", refuse)
    with pytest.raises(SetupError, match=f"CP515 .*could not be saved: {os.strerror(number)}"):
        trainer_of({}, tmp_path / "run", max_steps=3).train()


def with_small_files(work: Callable[..., None], most: int, *facts: Any) -> None:
    """Do something in a process whose files may not grow beyond some bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    work(*facts)


def train_and_tell(folder: Path) -> None:
    """Train; the error goes to a file beside the folder."""
    try:
        trainer_of({}, folder, max_steps=2).train()
    except SetupError as error:
        folder.with_suffix(".error").write_text(str(error))


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_what_the_system_itself_refuses_to_write_is_called_so(
    a_run: Path, tmp_path: Path, share: float
):
    """The kernel's own error, from within the libraries that write safetensors."""
    weights = (a_run / "checkpoint-1" / "optimizer.safetensors").stat().st_size
    most = int(share * weights)
    process = start(with_small_files, train_and_tell, most, tmp_path / "run")
    process.join(120)
    said = (tmp_path / "run.error").read_text()
    assert said.startswith(f"CP515 {tmp_path / 'run' / 'checkpoint-1'} could not be saved: ")
    assert os.strerror(errno.EFBIG) in said
    assert last_good(tmp_path / "run") is None
    assert not list((tmp_path / "run").glob(".*"))
