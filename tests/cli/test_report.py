"""``report``, ``compare`` and ``watch`` as they are called: flags, files, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from counterpoint.cli import compare, report, watch
from tests.cli.conftest import Command
from tests.report.runs import write_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run", steps=20, looks=0, samples=False)


@pytest.mark.parametrize("text", [one.COMMAND.help(80) for one in (report, compare, watch)])
def test_help_fits_a_terminal(text: str) -> None:
    assert text.startswith("usage: counterpoint ")
    assert max(map(len, text.splitlines())) <= 80


def test_the_report_lies_in_the_runs_folder_and_is_written_over(
    run: Path, command: Command
) -> None:
    said = command("report", "run")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("report in run/report.html (1.")
    assert command("report", "run").code == 0


def test_out_says_where_and_folders_are_made(run: Path, command: Command) -> None:
    assert command("report", "run", "--out", "deep/er.html").code == 0
    assert Path("deep/er.html").is_file()
    assert not Path("run/report.html").exists()


def test_two_runs_are_compared_into_the_current_folder(run: Path, command: Command) -> None:
    said = command("compare", "run", "run")
    assert (said.code, Path("comparison.html").is_file()) == (0, True)


def test_a_file_that_is_no_report_is_left_alone(run: Path, command: Command) -> None:
    Path("mine.html").write_text("my own")
    said = command("report", "run", "--out", "mine.html")
    assert (said.code, said.err[:20]) == (2, "counterpoint: CP506 ")
    assert Path("mine.html").read_text() == "my own"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["report"], "CP107"),
        (["report", "run", "run"], "CP103"),
        (["report", "run", "--oup", "x"], "CP101"),
        (["report", "nothing"], "CP507"),
        (["report", "run", "--out", "run"], "CP501"),
        (["report", "run", "--out", "run/run.json/x.html"], "CP501"),
        (["compare", "run"], "CP107"),
        (["compare", "run", "nothing"], "CP507"),
        (["watch"], "CP107"),
        (["watch", "run/run.json", "--port", "0"], "CP507"),
        (["watch", "run", "--port", "65536"], "CP103"),
        (["watch", "run", "--port", "x"], "CP103"),
    ],
)
def test_what_cannot_be_done_is_a_coded_line(
    run: Path, command: Command, words: list[str], code: str
) -> None:
    said = command(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"counterpoint: {code} ")
    assert said.err.count("\n") == 1


def test_a_folder_of_runs_is_answered_with_their_names(run: Path, command: Command) -> None:
    said = command("report", str(run.parent))
    assert (said.code, f"look at {run}." in said.err) == (2, True)


@pytest.mark.parametrize("words", [["report", "run"], ["watch", "run"]])
def test_without_the_plotting_library_its_install_command_is_named(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", steps=20, looks=0, samples=False)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    said = command(*words)
    assert said.code == 2
    assert said.err.startswith("counterpoint: CP502 ")
    assert "-m pip install 'bokeh>=3.9'" in said.err
