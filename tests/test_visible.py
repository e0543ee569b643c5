"""Control characters are shown and never sent, whoever wrote them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from counterpoint import CPOConfig, ModelError
from counterpoint.console import manners
from counterpoint.console.panel import View, panel
from counterpoint.console.phases import Phase
from counterpoint.errors import DataError
from counterpoint.markup import element
from counterpoint.masking import MaskingFilter
from counterpoint.models.loading import load_config
from counterpoint.runlog import Alarm
from counterpoint.visible import visible
from tests.cli.conftest import Command, command, pattern, tree, workshop

__all__ = ["command", "pattern", "tree", "workshop"]

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"a{TITLE}b\x9b31mc\u202ed\u2028e\rf\x7f"
SENT = ("\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\x7f", "\rf")


def assert_harmless(text: str) -> None:
    assert not [sign for sign in SENT if sign in text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\u001b[31mred"),
        ("a\x9bb", "a\\u009bb"),
        ("a\x00b\x7fc", "a\\u0000b\\u007fc"),
        ("one\rtwo", "one\\u000dtwo"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("a\u2028b\u2029c\x85d\x0be", "a\\u2028b\\u2029c\\u0085d\\u000be"),
        ("\udc80", "\\udc80"),
        ("a\tb\nc\r\nd", "a\tb\nc\r\nd"),
        ("plain, 中文, שלום, é, 👩‍💻", "plain, 中文, שלום, é, 👩‍💻"),
    ],
)
def test_what_commands_is_spelt_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_stays_the_same_json() -> None:
    told = visible(json.dumps({"text": HOSTILE}, ensure_ascii=False))
    assert_harmless(told)
    assert json.loads(told) == {"text": HOSTILE}


def test_every_door_of_the_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    for door in (manners.say, manners.put, manners.complain, manners.complain_all):
        door(HOSTILE)
    said = capsys.readouterr()
    assert_harmless(said.out + said.err)
    assert said.out.count("a\\u001b]0;owned\\u0007b\\u009b31mc\\u202ed\\u2028e\\u000df\\u007f") == 2


def test_progress_shows_them() -> None:
    told = Phase(f"reading {HOSTILE}", 2, "rows").text(0.0)
    assert "owned" in told
    assert_harmless(told)


def test_an_error_shows_them_in_python_too() -> None:
    error = DataError("CP201", f"the column {HOSTILE} is missing")
    assert_harmless(str(error) + error.message)


def test_a_log_record_shows_them() -> None:
    record = logging.LogRecord("counterpoint", 20, "", 1, "saw %s", (HOSTILE,), None)
    MaskingFilter().filter(record)
    assert_harmless(record.getMessage())


def test_the_panel_shows_them() -> None:
    alarm = Alarm("CW401", 3, 2, HOSTILE)
    view = View(numbers={f"constraints/{TITLE}/{key}": 1.0 for key in ("value", "bound")})
    view.numbers |= {f"constraints/{TITLE}/multiplier": 1.0}
    view.alarms["CW401"] = alarm
    lines = panel(view, 200, 0.0)
    assert len(lines) == 2
    assert_harmless("".join(line.plain for line in lines))
    assert Console().is_terminal is False


def test_a_page_shows_them() -> None:
    page = element("p", HOSTILE, title=HOSTILE)
    assert_harmless(page)
    assert page.count("\\u001b]0;owned") == 2


# The whole command


def test_names_of_a_model_are_shown(workshop: Path, command: Command) -> None:
    file = workshop / "model" / "config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"model_type": f"qwen2{TITLE}"}))
    with pytest.raises(ModelError) as refused:
        load_config(str(workshop / "model"), CPOConfig(output_dir="out", use_cpu=True))
    assert_harmless(str(refused.value))
    said = command("plan", "--model", "model", "--dataset", "pairs.jsonl")
    assert said.code == 2
    assert "\\u001b]0;owned" in said.err
    assert_harmless(said.out + said.err)


@pytest.mark.parametrize("first", ["train", "doctor", "tokens"])
def test_names_of_files_and_columns_are_shown(workshop: Path, command: Command, first: str) -> None:
    name = f"pairs{TITLE}\u202e.jsonl"
    rows = [{f"prompt{TITLE}": "a", "chosen\x9b": "b", "rejected": "c"}]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = command(first, "--model", "model", "--dataset", name, "--use_cpu", "true")
    assert said.code == 2
    assert "\\u001b]0;owned" in said.out + said.err
    assert_harmless(said.out + said.err)


@pytest.mark.parametrize("flags", [[], ["--json", "true"]])
def test_values_of_rows_are_shown(workshop: Path, command: Command, flags: list[str]) -> None:
    row = {"prompt": HOSTILE, "chosen": f"b{HOSTILE}", "rejected": "c"}
    Path("hostile.jsonl").write_text(json.dumps(row) + "\n")
    said = command("tokens", "--model", "model", "--dataset", "hostile.jsonl", *flags)
    assert said.code == 0, said.err
    assert said.out
    assert_harmless(said.out + said.err)


def test_words_of_the_command_line_are_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["tr\x1b[2Jain"], ["train", f"--{TITLE}", "1"], ["report", f"no{TITLE}"]):
        monkeypatch.setattr(sys, "argv", ["counterpoint", *words])
        said = command(*words)
        assert said.code == 2
        assert_harmless(said.out + said.err)


def test_an_unforeseen_error_and_its_trace_are_shown(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*words: object, **keywords: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr("counterpoint.options.settings.read_request", failing)
    said = command("train", "--model", "model", "--debug")
    assert said.code == 1
    assert "Traceback" in said.err
    assert_harmless(said.out + said.err)
