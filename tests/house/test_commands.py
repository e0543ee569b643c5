"""Every command that the product prints, and every one of the docs, is one that there is."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from counterpoint.cli.completion import Words, all_words
from counterpoint.cli.main import main
from counterpoint.doctor.table import TABLE
from counterpoint.errors import CODES
from counterpoint.invocation import COMMANDS, EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted((ROOT / "src").rglob("*.py"))

EVERYWHERE = {"help", "debug", "language", "name", "option"}
"""Options of every command, and the two words that stand for any of them."""
# a word of prose after the name of the project is no subcommand
CALL = re.compile(r"(?<![\w./`\"'{-])counterpoint ([a-z]+)((?: [^\n;:,]*)?)")
FLAG = re.compile(r"(?<!\S)--([a-z_0-9]+)")


@cache
def known() -> dict[str, Words]:
    return all_words()


def wrong(command: str, rest: str) -> Iterator[str]:
    """What a call has that its command does not take."""
    if command not in known():
        yield command
        return
    flags = known()[command].flags
    for flag in FLAG.findall(rest):
        if flag not in flags and flag not in EVERYWHERE and flag.replace("-", "_") not in flags:
            yield f"{command} --{flag}"
    for code in re.findall(r"--explain[ =](C[PWN]\d+)", rest):
        if code not in TABLE:
            yield code


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a module that are no docstrings; what is filled in is the word VALUE."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "VALUE"
                for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.value


def calls_of(path: Path) -> Iterator[tuple[str, str]]:
    for text in texts_of(path):
        for command, rest in CALL.findall(text.replace("\\\n", " ")):
            if command in COMMANDS or "--" in rest:
                yield command, rest.split(". ")[0]


def calls_in(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of a page: lines of its blocks, and words set as code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console|text)?\n(.*?)```", text, re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(counterpoint [^`\n]+)`", text)
    for line in [*lines, *inline]:
        words = line.split("#")[0].split()
        if words[:1] == ["counterpoint"] and len(words) > 1 and not words[1].startswith("-"):
            yield words[1], " ".join(words[2:])


def test_there_is_one_list_of_commands() -> None:
    assert set(COMMANDS) == set(known())


def test_every_command_that_a_text_of_the_code_names_is_one_that_there_is() -> None:
    found = [(path, *call) for path in SOURCES for call in calls_of(path)]
    assert len(found) > 60
    assert [(path.name, *wrong(*call)) for path, *call in found if any(wrong(*call))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_there_is(page: Path) -> None:
    assert [list(wrong(*call)) for call in calls_in(page) if any(wrong(*call))] == []


def test_the_pages_hold_commands() -> None:
    assert sum(len(list(calls_in(page))) for page in PAGES) > 60


def test_nothing_is_installed_by_a_name_on_an_index_that_is_not_ours() -> None:
    named = re.compile(r"pip install (?:-\S+ )*'?counterpoint\b")
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, *PAGES]}
    assert [path.name for path, text in texts.items() if named.search(text)] == []


def test_an_extra_is_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: " ".join(wanted) for name, wanted in project["optional-dependencies"].items()}
    assert dict(EXTRAS) == extras


@pytest.mark.parametrize("code", sorted(set(CODES) & set(TABLE))[:3])
def test_what_the_help_says_of_a_code_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(f"doctor --explain {code}")) == 0
    assert capsys.readouterr().out.startswith(code)


def test_make_quickstart_installs_what_the_command_that_it_prints_needs() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    runtime = rules.split("$(RUNTIME): ")[1].split("\n\n")[0]
    assert "-e '.[report]'" in runtime
