"""The page of constrained mode does what it says, in both languages alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from counterpoint import Constraint
from counterpoint.cli.main import main
from counterpoint.constraints import KINDS
from counterpoint.doctor.table import TABLE
from counterpoint.errors import CODES
from counterpoint.quickstart.run import run
from counterpoint.runlog import Run, read_run
from tests.examples.pages import blocks, both, commands

ENGLISH, CHINESE = both("constrained")
STEPS = 8
"""Optimizer steps that the page's runs take here, on a quickstart as much shorter."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The page, done from top to bottom in an empty folder: its runs, by their folders."""
    folder = tmp_path_factory.mktemp("constrained")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COUNTERPOINT_CACHE", str(folder / "cache"))
        run("counterpoint-quickstart", steps=STEPS, held_out=8)
        for language, text in blocks(ENGLISH):
            if language == "python":
                exec(compile(text, "docs/constrained.md", "exec"), names)
            elif language == "yaml" and text.startswith("# "):
                Path(text.split()[1]).write_text(text, encoding="utf-8")
            elif language == "sh":
                assert [main(words[1:]) for words in commands(text)] == [0, 0]
        yield {path.name: read_run(path) for path in (folder / "runs").iterdir()}


def test_file_flag_and_script_ask_for_the_bounds_shown(runs: dict[str, Run]) -> None:
    asked = {name: run.facts["constraints"] for name, run in runs.items()}
    assert {name: [one["slack"] for one in each] for name, each in asked.items()} == {
        "bounded": [0.2],
        "script": [0.2],
        "tight": [0.0],
    }
    assert asked["bounded"] == asked["script"]
    for (constraint,) in asked.values():
        share = constraint["bound"] / constraint["initial"]
        assert share == pytest.approx(1 + constraint["slack"])


def test_the_lines_shown_are_those_that_a_run_prints(runs: dict[str, Run]) -> None:
    shown = next(text for kind, text in blocks(ENGLISH) if kind == "text" and "subject" in text)
    relative = shown.splitlines()[:-1]
    objective = runs["bounded"].facts["objective"]
    # once it is known, the bound is a number
    assert objective.splitlines()[:3] == relative[:3]
    assert re.match(
        r"subject to bc <= [\d.]+ \(dual_ascent, multiplier from 0.03\)$", objective.splitlines()[3]
    )


def test_the_metrics_explained_are_those_that_are_logged(runs: dict[str, Run]) -> None:
    table = ENGLISH.split("## Metrics and alarms")[1].split("## ")[0]
    explained = {name.replace("NAME", "bc") for name in re.findall(r"`([\w/]+/NAME/\w+)`", table)}
    logged = {key for line in runs["bounded"].metrics for key in line if "constraints/" in key}
    assert explained == logged


def test_the_tables_have_every_kind_and_every_option_with_its_default() -> None:
    table = ENGLISH.split("## The constraints")[1].split("### ")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| `")]
    kinds = {row[0].strip("`"): row[-1] for row in rows[1:]}
    assert list(kinds) == list(KINDS)
    for kind, shown in kinds.items():
        bound, slack = KINDS[kind].bound, KINDS[kind].slack
        number = bound if bound is not None else slack
        assert ("none" in shown) if number is None else (f"{number:g}" in shown), kind
    options = ENGLISH.split("### Options of a constraint")[1].split("## ")[0]
    shown = re.findall(r"^\| (`.*?`) \| (.*?) ?\| ", options, re.MULTILINE)
    defaults = {name: value for names, value in shown for name in re.findall(r"`(\w+)`", names)}
    assert sorted(defaults) == sorted(option.name for option in fields(Constraint))
    for option in fields(Constraint):
        if isinstance(option.default, int | float):
            assert float(defaults[option.name]) == option.default, option.name
        elif option.name == "update":
            assert defaults["update"] == f"`{option.default}`"


def test_the_page_says_what_the_rows_of_the_kinds_say() -> None:
    options = ENGLISH.split("### Options of a constraint")[1].split("## ")[0]
    meanings = re.findall(r"^\| (`.*?`) \| .*?\| (.*) \|$", options, re.MULTILINE)
    for kind, row in KINDS.items():
        assert f"arxiv.org/abs/{row.paper}" in ENGLISH
        told = {
            n for names, meaning in meanings if f"`{kind}`" in meaning for n in names.split("`")
        }
        assert set(row.own_options) <= told, kind
    relative = [f"`{kind}`" for kind, row in KINDS.items() if row.relative]
    assert f"{', '.join(relative[:-1])} and {relative[-1]} take it" in ENGLISH


def test_every_code_is_one_that_the_tables_have() -> None:
    named = set(re.findall(r"\bC[PWN]\d{3}\b", ENGLISH))
    assert named <= set(TABLE) | set(CODES)


def test_both_languages_have_the_same_formulas() -> None:
    english, chinese = (re.findall(r"^\$\$.*\$\$$", page, re.M) for page in (ENGLISH, CHINESE))
    assert len(english) > 3
    assert english == chinese
