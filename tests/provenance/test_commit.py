"""The commit of a working folder is read, and nothing that lies in the folder is run for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.provenance.commit import commit_of
from counterpoint.provenance.environment import environment

WHO = ["-c", "user.name=a", "-c", "user.email=a@example.org"]

_started: list[object] = []


def _heard(event: str, facts: tuple[object, ...]) -> None:
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        _started.append(facts[:2])


@pytest.fixture
def started() -> list[object]:
    """What this process starts meanwhile."""
    if not hasattr(sys, "_heard_by_test_commit"):  # such a hook cannot be taken away again
        sys.addaudithook(_heard)
        sys._heard_by_test_commit = True  # type: ignore[attr-defined]
    _started.clear()
    return _started


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *WHO, *words], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file").write_text("one")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def hostile(folder: Path, proof: Path) -> None:
    """A repository whose configuration names a program wherever git takes one."""
    run = f"touch {proof}"
    hooks = folder / ".git" / "hostile"
    hooks.mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\n{run}\n")
        (hooks / name).chmod(0o755)
    (folder / ".git" / "more").write_text(f'[core]\n fsmonitor = "{run}"\n')
    with (folder / ".git" / "config").open("a") as config:
        config.write(
            f'[filter "x"]\n clean = {run}; cat\n process = {run}\n'
            f'[diff "x"]\n textconv = {run}\n command = {run}\n'
            f"[credential]\n helper = !{run}\n[core]\n pager = {run}\n sshCommand = {run}\n"
            f" fsmonitor = {run}\n hooksPath = {hooks}\n[include]\n path = more\n"
            f"[alias]\n status = !{run}\n rev-parse = !{run}\n"
        )
    (folder / ".gitattributes").write_text("* filter=x diff=x\n")
    (folder / "file").write_text("two")


def test_no_program_of_a_hostile_repository_runs_and_git_does_not_either(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[object]
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    hostile(repository, tmp_path / "proof")
    monkeypatch.chdir(repository)
    started.clear()
    assert environment()["git"] == {"commit": commit}
    # python's own question for the name of the processor
    assert [one for one in started if one != ("uname", ["uname", "-p"])] == []
    assert not (tmp_path / "proof").exists()


def test_the_trap_of_these_tests_works(repository: Path, tmp_path: Path) -> None:
    hostile(repository, tmp_path / "proof")
    subprocess.run(["git", "status"], cwd=repository, check=False, capture_output=True)
    assert (tmp_path / "proof").exists()


def test_the_commit_is_read_of_branches_packed_or_not_and_of_no_branch(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "deep" / "down").mkdir(parents=True)
    assert commit_of(repository / "deep" / "down") == commit
    git(repository, "pack-refs", "--all")
    assert commit_of(repository) == commit
    git(repository, "checkout", "-q", "--detach")
    assert commit_of(repository) == commit
    git(repository, "commit", "-q", "--allow-empty", "-m", "second")
    assert commit_of(repository) == git(repository, "rev-parse", "HEAD") != commit


def test_the_commit_is_read_in_a_further_work_tree_and_in_a_submodule(
    repository: Path, tmp_path: Path
) -> None:
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    git(repository, "pack-refs", "--all")
    there = git(tmp_path / "tree", "rev-parse", "HEAD")
    assert commit_of(tmp_path / "tree") == there != commit_of(repository)
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    allowed = ("-c", "protocol.file.allow=always")
    git(outer, *allowed, "submodule", "--quiet", "add", str(repository), "inner")
    assert commit_of(outer / "inner") == commit_of(repository)
    assert commit_of(outer) is None  # before its first commit


@pytest.mark.parametrize(
    "head",
    ["ref: ../../secret", "ref: refs/../../../secret", "ref: /etc/hostname", "ref: HEAD", "word"],
)
def test_a_reference_that_leads_elsewhere_is_not_followed(tmp_path: Path, head: str) -> None:
    (tmp_path / "a" / ".git").mkdir(parents=True)
    (tmp_path / "secret").write_text("0" * 40)
    (tmp_path / "a" / ".git" / "HEAD").write_text(head)
    assert commit_of(tmp_path / "a") is None


@pytest.mark.parametrize("name", ["//host/share", "\\\\host\\share", "\0", "", "/gone"])
def test_a_repository_that_is_said_to_lie_on_another_machine_is_not_asked(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / ".git").write_text(f"gitdir: {name}\n")
    assert commit_of(tmp_path) is None


def test_a_pipe_in_a_repository_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "HEAD")
    assert commit_of(tmp_path) is None
