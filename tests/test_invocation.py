"""A command that is printed runs as printed, whatever of this installation is on the PATH."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from counterpoint import invocation
from counterpoint.invocation import EXTRAS, command, installing, python, runnable


def script(folder: Path, name: str = "counterpoint") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\necho it ran\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a virtual environment, none of it on the PATH."""
    script(tmp_path / ".venv" / "bin", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(invocation.sysconfig, "get_path", lambda *_: str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def runs(words: str) -> bool:
    return subprocess.run(words, shell=True, capture_output=True, text=True).stdout == "it ran\n"


def test_a_script_beside_this_python_is_named_by_its_path(here: Path) -> None:
    script(here / ".venv" / "bin")
    assert command() == ".venv/bin/counterpoint"
    assert runs(f"{command()} report run")
    assert runnable("see counterpoint report run.") == "see .venv/bin/counterpoint report run."


def test_on_the_path_the_name_is_enough(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(here / ".venv" / "bin")
    monkeypatch.setenv("PATH", f"{here}/.venv/bin:/usr/bin:/bin")
    assert command() == "counterpoint"
    assert runnable("see counterpoint report run.") == "see counterpoint report run."


def test_another_installation_on_the_path_is_not_taken_for_this_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(here / ".venv" / "bin")
    monkeypatch.setenv("PATH", str(script(here / "other").parent))
    assert command() == ".venv/bin/counterpoint"


def test_a_link_on_the_path_to_this_one_is_this_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = here / "links"
    linked.mkdir()
    (linked / "counterpoint").symlink_to(script(here / ".venv" / "bin"))
    monkeypatch.setenv("PATH", str(linked))
    assert command() == "counterpoint"


def test_without_a_script_the_module_is_called(here: Path) -> None:
    assert command() == ".venv/bin/python -m counterpoint"
    said = runnable("counterpoint doctor --explain CW101 says why")
    assert said == ".venv/bin/python -m counterpoint doctor --explain CW101 says why"
    assert runnable(said) == said  # not once more


def test_a_path_with_a_space_is_quoted(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "my env", "python")))
    script(tmp_path / "my env")
    assert runs(f"{command()} train")
    assert runs(f"{python()} -m counterpoint")
    assert runnable(runnable("counterpoint train")) == f"{command()} train"


def test_a_python_elsewhere_is_named_from_the_root(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert command() == f"{shlex.quote(str(tmp_path))}/.venv/bin/python -m counterpoint"


@pytest.mark.parametrize(
    "text",
    [
        "counterpoint trains models",
        "runs/counterpoint train",
        "counterpoint: CP101",
        "./counterpoint train",
        "import counterpoint",
    ],
)
def test_what_is_no_command_stays_as_it_is(here: Path, text: str) -> None:
    assert runnable(text) == text


def test_packages_are_installed_by_requirement_where_this_python_finds_them(here: Path) -> None:
    said = installing(EXTRAS["report"], "torch>=2.10")
    assert said == ".venv/bin/python -m pip install 'bokeh>=3.9' 'torch>=2.10'"
    assert runs(said)
    assert not (here / "=3.9").exists()  # the shell took no part of it for a file


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_package_of_an_extra_is_a_word_of_its_own(here: Path, extra: str) -> None:
    assert shlex.split(installing(EXTRAS[extra]))[4:] == EXTRAS[extra].split()


def test_to_look_for_pip_leaves_a_distutils_that_is_loaded_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    installing("bokeh>=3.9")  # a warning is an error here
    assert "distutils" in sys.modules


def test_an_environment_without_pip_is_installed_into_by_uv(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invocation, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", str(script(here / "tools", "uv").parent))
    said = installing("peft>=0.18")
    assert said == "uv pip install --python .venv/bin/python 'peft>=0.18'"
    assert runs(said.replace("uv", str(here / "tools" / "uv"), 1))


@pytest.mark.skipif(os.name == "nt", reason="scripts end in .exe there")
def test_the_script_that_was_called_is_the_one_that_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script(here / "user" / "bin")), "quickstart"])
    assert command() == "user/bin/counterpoint"
