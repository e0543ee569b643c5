"""What a repository is expected to have: hooks, public CI, a citation, a changelog in order."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import counterpoint

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASE = re.compile(r"^## (\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)$", re.MULTILINE)


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def gates() -> list[str]:
    """The commands of ``make check`` before its tests."""
    recipe = MAKEFILE.split("\ncheck:")[1].split("\n\n")[0].split("\n\t")[1:]
    before = recipe[: next(at for at, line in enumerate(recipe) if "pytest" in line)]
    return [line.replace("$(BIN)", ".venv/bin") for line in before]


# Hooks


def test_the_hooks_are_the_gates_of_make_check() -> None:
    [source] = parsed(".pre-commit-config.yaml")["repos"]
    assert source["repo"] == "local"
    assert [hook["entry"] for hook in source["hooks"]] == gates()


def test_every_hook_runs_in_the_environment_at_an_installed_stage() -> None:
    config = parsed(".pre-commit-config.yaml")
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert not hook["pass_filenames"]
        assert set(hook["stages"]) <= set(config["default_install_hook_types"])
    assert "pre-commit install" in MAKEFILE.split("\nhooks:")[1].split("\n\n")[0]


# Public CI


def test_the_workflow_calls_the_ci_script_with_the_whole_history() -> None:
    workflow = parsed(".github/workflows/ci.yml")
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    used = {step["uses"].partition("@")[0]: step for step in job["steps"] if "uses" in step}
    assert used["actions/checkout"]["with"]["fetch-depth"] == 0
    assert used["actions/setup-python"]["with"]["cache"] == "pip"


def test_the_workflow_may_only_read_and_its_actions_are_pinned() -> None:
    workflow = parsed(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    [job] = workflow["jobs"].values()
    assert "permissions" not in job
    for step in job["steps"]:
        assert "uses" not in step or re.search(r"@v\d+\.\d+\.\d+$", step["uses"])


def test_the_workflow_runs_the_oldest_python_and_a_newer_one() -> None:
    [job] = parsed(".github/workflows/ci.yml")["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={versions[0]}"
    assert len(versions) == 2
    assert int(versions[1].split(".")[1]) > int(versions[0].split(".")[1])


# Citation


def test_the_citation_names_this_version_licence_and_day() -> None:
    citation = parsed("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    released = {f"{a}.{b}.{c}": day for a, b, c, day in RELEASE.findall(CHANGELOG)}
    assert citation["version"] == counterpoint.__version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert str(citation["date-released"]) == released[counterpoint.__version__]


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = parsed("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert {"message", "title", "authors"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
    assert "2401.08417" in str(citation["references"])


# Changelog and log


def test_the_releases_of_the_changelog_descend() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    found = [((int(a), int(b), int(c)), day) for a, b, c, day in RELEASE.findall(CHANGELOG)]
    assert len(headings) == len(found) + (headings[0] == "Unreleased")
    assert all(later > earlier for (later, _), (earlier, _) in pairwise(found))
    assert all(later >= earlier for (_, later), (_, earlier) in pairwise(found))


def test_every_entry_of_the_log_says_why_what_was_measured_and_where() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    for entry in entries:
        marks = re.findall(r"^- \*\*(.+?)\*\*: \S", entry, re.MULTILINE)
        assert marks in (
            ["Why it looked good", "Measured", "Where"],
            ["Why it looked good", "What was found", "Where"],
            ["What", "Measured", "Where"],
        ), entry.partition("\n")[0]
