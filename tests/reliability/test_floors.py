"""Versions with a known hole are refused at the start, with the reason, and cheaply."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import counterpoint
from counterpoint.cli.main import main
from counterpoint.errors import SetupError
from counterpoint.floors import FLOORS, check_floors

ROOT = Path(__file__).parents[2]


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """As if these versions were installed."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))


@pytest.mark.parametrize(
    ("package", "version", "refused"),
    [
        ("torch", "2.9.1+cu128", True),
        ("torch", "2.10.0.dev20251101", False),
        ("torch", "2.10.0+cpu", False),
        ("torch", "3.0", False),
        ("transformers", "4.57.1", True),
        ("transformers", "5.2.9", True),
        ("transformers", "5.3.0", False),
        ("transformers", "5.30", False),
        ("datasets", "4.6.2", True),
    ],
)
def test_a_version_is_refused_below_its_floor_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, refused: bool
) -> None:
    pretend(monkeypatch, **{package: version})
    if not refused:
        check_floors()
        return
    with pytest.raises(SetupError) as caught:
        check_floors()
    floor, reason = FLOORS[package]
    assert caught.value.code == "CP502"
    for words in (f"{package} {version} is older than {floor}", reason, f"'{package}>={floor}'"):
        assert words in caught.value.message


def test_all_that_is_too_old_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="2.6.0", transformers="4.46.0")
    with pytest.raises(SetupError, match=r"CVE-2026-24747.*CVE-2026-4372.*CVE-2026-1839.*install"):
        check_floors()


def test_the_command_refuses_in_one_line_before_it_reads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, torch="2.9.0")
    assert main(["train", "no such file.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("counterpoint: CP502 torch 2.9.0 is older than 2.10 (CVE-2026-24747")
    assert err.count("\n") == 1


def test_the_library_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, transformers="5.0.0")
    with pytest.raises(SetupError, match=r"CP502 transformers 5\.0\.0"):
        _ = counterpoint.CPOConfig
    assert counterpoint.SetupError is SetupError  # an error can be named whatever is installed


def test_the_check_imports_none_of_what_it_checks() -> None:
    program = (
        "import sys\nfrom counterpoint.floors import check_floors\ncheck_floors()\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_floors_are_those_that_pip_is_told() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, (floor, _) in FLOORS.items():
        assert f"{package}>={floor}" in project["dependencies"]
