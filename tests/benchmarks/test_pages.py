"""What the documentation shows is what the results say."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import alarms
import beside_reference
import checkpoint
import compiling
import data_at_size
import generation
import gpu
import growth
import lists
import loop
import monitor
import plan_sharded
import planner
import preparing
import pytest
import quickstart
import real_model
import report
import roofline
import scaling_table
import sharding
import sharing
import step
import translation
import vision

ROOT = Path(__file__).parents[2]
SPEED = "docs/speed.md"
SHOWN: dict[tuple[str, str], Callable[[Any], str]] = {
    ("README.md", "step"): lambda results: step.table(results["rows"], goals=False),
    ("README.zh-CN.md", "step"): lambda results: step.table(results["rows"], goals=False),
    (SPEED, "step"): lambda results: step.table(results["rows"], goals=True),
    (SPEED, "growth"): growth.page,
    (SPEED, "sharing"): lambda results: sharing.table(results["rows"]),
    (SPEED, "roofline"): lambda results: roofline.table(results["rows"]),
    (SPEED, "preparing"): preparing.table,
    (SPEED, "compiling"): compiling.table,
    (SPEED, "gpu"): gpu.page,
    (SPEED, "lists"): lambda results: lists.table(results["rows"]),
    ("docs/data.md", "data_at_size"): data_at_size.table,
    ("docs/alarms.md", "alarms"): alarms.table,
    ("docs/report.md", "report"): report.table,
    ("docs/reliability.md", "checkpoint"): checkpoint.table,
    ("docs/references.md", "beside_reference"): beside_reference.table,
    ("docs/planning.md", "planner"): lambda results: planner.table(results["rows"]),
    ("docs/planning.md", "plan_sharded"): lambda results: plan_sharded.table(results["rows"]),
    ("docs/scaling.md", "scaling"): lambda results: scaling_table.table(results["rows"]),
    ("docs/scaling.md", "sharding"): lambda results: sharding.table(results["rows"]),
    ("docs/translation.md", "translation"): lambda results: translation.table(results["rows"]),
    **{
        (f"docs/{page}", "generation"): lambda results: generation.table(results["rows"])
        for page in generation.PAGES
    },
    **{
        (f"docs/{page}", "loop"): lambda results: loop.as_table(results["rows"])
        for page in loop.PAGES
    },
    ("docs/objectives.md", "real_model"): real_model.table,
    ("docs/vision.md", "vision"): lambda results: vision.table(results["rows"]),
    **{
        (f"docs/{page}", "quickstart_both"): lambda results: quickstart.table_of_both(
            results["rows"]
        )
        for page in quickstart.PAGES_OF_BOTH
    },
    **{
        (f"docs/{page}", "quickstart_vision"): lambda results: quickstart.table_of_vision(
            results["rows"]
        )
        for page in quickstart.PAGES_OF_VISION
    },
    ("docs/monitor.md", "monitor"): lambda results: monitor.table(results["rows"]),
}
MONITORED: dict[str, Callable[[Any], str]] = {
    "look": monitor.look_shown,
    "diff": monitor.diff_shown,
}


@pytest.mark.parametrize(("page", "name"), SHOWN)
def test_a_table_holds_what_was_measured(page, name):
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]
    if shown.startswith(("Not measured yet.", "Figures on GPUs are still owed.")):
        pytest.skip("not measured yet")
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert shown == SHOWN[page, name](results), f"run python benchmarks/{name}.py --docs"


@pytest.mark.parametrize("name", MONITORED)
def test_the_monitors_example_is_what_was_seen(name):
    text = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    shown = text.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]
    results = json.loads((ROOT / "benchmarks" / "results" / "monitor.json").read_text())
    assert shown == MONITORED[name](results["rows"]), "run python benchmarks/monitor.py --docs"


def test_what_stands_outside_the_marks_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbelow <!-- b: begin -->\n")
    step.put_between(page, "a", "new")
    assert page.read_text() == (
        "above\n<!-- a: begin -->\nnew\n<!-- a: end -->\nbelow <!-- b: begin -->\n"
    )


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_script_finds_what_it_imports(script, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns of itself when it is imported
    if script in ("differences", "precision"):
        pytest.importorskip("trl", reason="TRL is not installed")
    assert callable(import_module(script).main)
