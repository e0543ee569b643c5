"""A folder belongs to one run at a time, from the first look at it to the last write."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import counterpoint.cli.train
from counterpoint.checkpoint import lock
from counterpoint.checkpoint.folder import checkpoints
from counterpoint.checkpoint.lock import LOCK, locked
from counterpoint.errors import SetupError
from counterpoint.runlog import read_run
from counterpoint.staged import staged
from tests.cli.conftest import Command, command, pattern, tree, workshop
from tests.cli.test_train import write_run
from tests.reliability.scenarios import trainer_of

__all__ = ["command", "pattern", "workshop"]

OTHER = """
import sys
from pathlib import Path
from counterpoint.checkpoint.lock import locked
try:
    with locked(Path(sys.argv[1])):
        print("taken")
except Exception as error:
    print(error)
"""


def another_process(folder: Path) -> str:
    """What another process is told that wants the folder."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def while_loading(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    """Do something in the middle of the command's loading."""
    original = counterpoint.cli.train.load_parts

    def slowly(*facts: Any, **more: Any) -> Any:
        parts = original(*facts, **more)
        work()
        return parts

    monkeypatch.setattr("counterpoint.cli.train.load_parts", slowly)


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none, as some across a network."""

    def refuses(*facts: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", refuses)


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A run of two steps that ended, with a checkpoint after each."""
    folder = tmp_path / "finished"
    trainer_of({}, folder, max_steps=2).train()
    return folder


def test_the_folder_is_locked_while_the_command_still_loads_and_while_it_evaluates_at_the_end(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    while_loading(monkeypatch, lambda: heard.append(another_process(workshop / "out")))
    evaluate = counterpoint.cli.train.CPOTrainer.evaluate

    def evaluated(self: Any, *facts: Any, **more: Any) -> Any:
        heard.append(another_process(workshop / "out"))
        return evaluate(self, *facts, **more)

    monkeypatch.setattr("counterpoint.cli.train.CPOTrainer.evaluate", evaluated)
    said = command("train", write_run(max_steps=1, eval_dataset="pairs.jsonl"))
    assert said.code == 0, said.err
    assert len(heard) == 2
    for one in heard:
        assert one.startswith("CP516 "), heard
        assert f"(process {os.getpid()} on" in one
    assert not (workshop / "out" / LOCK).exists()


@pytest.mark.parametrize("more", [{}, {"overwrite_output_dir": True}, {"resume": "auto"}])
def test_a_run_that_ended_while_another_loaded_is_kept_even_where_there_are_no_locks(
    workshop: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    finished_run: Path,
    more: dict[str, Any],
) -> None:
    no_locks(monkeypatch)
    while_loading(
        monkeypatch, lambda: shutil.copytree(finished_run, workshop / "out", dirs_exist_ok=True)
    )
    said = command("train", write_run(max_steps=1, doctor="off", **more))
    assert said.code == 2
    line = said.err.splitlines()[-1]
    assert "CP520 out got files of another run" in line
    assert "checkpoint-1, checkpoint-2" in line
    assert tree(workshop / "out") == tree(finished_run)
    assert read_run("out").facts["ended"]["state"] == "finished"


def test_a_trainer_that_was_made_before_another_process_trained_there_begins_nothing(
    tmp_path: Path, finished_run: Path
) -> None:
    trainer = trainer_of({}, tmp_path / "out", max_steps=2)
    shutil.copytree(finished_run, tmp_path / "out", dirs_exist_ok=True)
    with pytest.raises(SetupError, match=r"CP520 .*checkpoint-1, checkpoint-2, run.json"):
        trainer.train()
    with pytest.raises(SetupError, match="CP520"):
        trainer_before_nothing(trainer)
    assert tree(tmp_path / "out") == tree(finished_run)
    # who resumes it loses nothing of it
    assert trainer.train(resume_from_checkpoint=True).global_step == 2


def trainer_before_nothing(trainer: Any) -> None:
    """Begin anew, as resume_from_checkpoint=False asks."""
    trainer.train(resume_from_checkpoint=False)


def test_trainers_of_one_process_train_in_turn_in_one_folder_as_a_notebook_does(
    tmp_path: Path,
) -> None:
    one, other = (trainer_of({}, tmp_path / "out", max_steps=1) for _ in range(2))
    one.train()
    one.save_model()
    other.train()
    one.train()
    assert [line["step"] for line in read_run(tmp_path / "out").metrics] == [1, 1]
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_two_threads_do_not_train_in_one_folder_at_once(tmp_path: Path) -> None:
    trainer = trainer_of({}, tmp_path, max_steps=1)
    inside, done = threading.Event(), threading.Event()

    def holds() -> None:
        with locked(tmp_path):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=holds)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(SetupError, match=r"CP516 .*another thread of this process"):
            trainer.train()
        with pytest.raises(SetupError, match="CP516"):
            trainer.save_model()
    finally:
        done.set()
        thread.join()
    assert trainer.train().global_step == 1


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(precious)
    with (
        pytest.raises(SetupError, match=r"CP501 .*cannot be the lock of a run"),
        locked(tmp_path / "run"),
    ):
        pass
    assert precious.read_text() == "mine"


def overtaken(path: Path) -> None:
    """Write a file beside which another one gets the name first."""
    with staged(path, overwrite=False) as file:
        file.write(b"new")
        path.write_text("theirs")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_while_another_was_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / "pairs.jsonl"

    def none(*facts: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", none)
    with pytest.raises(SetupError, match=r"CP506 .*pairs.jsonl is there already"):
        overtaken(path)
    assert path.read_text() == "theirs"
    with staged(tmp_path / "free", overwrite=False) as file:
        file.write(b"new")
    assert (tmp_path / "free").read_bytes() == b"new"
    assert tree(tmp_path) == ["free", "pairs.jsonl"]


def test_what_a_killed_run_had_begun_to_write_does_not_make_a_folder_occupied(
    workshop: Path, command: Command
) -> None:
    out = workshop / "out"
    (out / ".checkpoint-1.part").mkdir(parents=True)
    (out / ".run.json.4711.part").write_text("{")
    (out / LOCK).touch()
    assert command("train", write_run(max_steps=1, resume="auto", doctor="off")).code == 0
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("end", [2, 3], ids=["within an epoch", "at the end of one"])
def test_a_signal_in_a_life_that_resumes_a_finished_run_leaves_its_last_checkpoint_as_it_was(
    tmp_path: Path, end: int
) -> None:
    trainer_of({}, tmp_path, max_steps=end).train()
    last = tmp_path / f"checkpoint-{end}"
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    again = trainer_of({}, tmp_path, max_steps=end)
    again.add_callback(_Signalled(again))
    with pytest.raises(KeyboardInterrupt) as ended:
        again.train(resume_from_checkpoint="auto")
    assert ended.value.exit_code == 128 + signal.SIGTERM  # type: ignore[attr-defined]
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before


class _Signalled(TrainerCallback):
    """A signal that comes while a resumed run begins."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_after_step(signal.SIGTERM)
