"""Names that no file system takes are refused at once; what has its name is on the disk."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from counterpoint import staged as room
from counterpoint.errors import SetupError
from counterpoint.runlog import RUN_FILE, RunLog, check_writable
from counterpoint.staged import refuse_taken, staged

NAMES = [
    ("x" * 300, "has 300 bytes, and the longest name here 255"),
    ("新" * 100, "has 300 bytes"),
    ("new/" + "x" * 300, "has 300 bytes"),
    ("out ", "begins or ends with a space"),
    (" out/run", "begins or ends with a space"),
    ("a\0b", "holds a control character"),
    ("a\x1b[31m", "holds a control character"),
    ("a\ud800", "half of a surrogate pair"),
    ("/".join(["y" * 200] * 25), "and the longest path here"),
]


@pytest.mark.parametrize(("name", "said"), NAMES)
@pytest.mark.parametrize("of_a_file", [False, True])
def test_a_name_that_no_folder_or_file_can_have_is_refused_with_what_is_wrong_with_it(
    tmp_path: Path, name: str, said: str, of_a_file: bool
) -> None:
    check = partial(refuse_taken, overwrite=True) if of_a_file else check_writable
    with pytest.raises(SetupError, match="CP501 ") as refused:
        check(tmp_path / name)
    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_link_to_nothing_and_a_path_through_a_file_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name, what in (
        ("link", "a link to nothing"),
        ("loop", "a link to nothing"),
        ("file", "a file"),
    ):
        with pytest.raises(SetupError, match=f"CP501 .* is {what}"):
            check_writable(tmp_path / name)
        with pytest.raises(SetupError, match=f"CP501 .* is {what}"):
            check_writable(tmp_path / name / "run")


def test_a_folder_that_is_there_keeps_its_name_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "out ").mkdir()
    check_writable(tmp_path / "out ")
    assert not list((tmp_path / "out ").iterdir())


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    with staged(tmp_path / ("z" * 255)) as file:
        file.write(b"whole")
    assert (tmp_path / ("z" * 255)).read_bytes() == b"whole"


def test_the_parents_of_a_new_run_and_its_facts_are_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        order.append(f"-> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(room.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    RunLog(tmp_path / "runs" / "first").describe({})
    part = f".{RUN_FILE}.{os.getpid()}.part"
    assert sorted(order[:2]) == sorted([tmp_path.name, "runs"])
    assert order[2:] == [part, f"-> {RUN_FILE}", "first"]
