"""The constraints of a run in its report: what was asked, what came of it, in words and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")

from counterpoint.report.about import About
from counterpoint.report.card import model_card
from counterpoint.report.constraints import constraint_charts, constraint_in_words
from counterpoint.report.curves import line_charts, panels_of, read_series
from counterpoint.report.objective import formula_of
from counterpoint.report.run_report import report_html
from counterpoint.runlog import METRICS, RunLog, read_run
from tests.report.runs import facts

ASKED: dict[str, Any] = {
    "name": "bc",
    "kind": "bc",
    "bound": 1.8,
    "slack": 0.5,
    "initial": 1.2,
    "update": "nu_pi",
    "rate": 50.0,
    "cap": 100.0,
    "start": 1.0,
}


def line(step: int, value: float) -> dict[str, Any]:
    numbers = {
        "value": value,
        "bound": 1.8,
        "violation": value - 1.8,
        "smoothed": value - 1.8,
        "multiplier": 0.25,
        "feasible": 0.75,
        "at_cap": 0.0,
    }
    held = {f"constraints/bc/{name}": number for name, number in numbers.items()}
    return {"step": step, "epoch": step / 100, "loss": 0.5, "nll_loss": value, **held}


@pytest.fixture
def run(tmp_path: Path):
    log = RunLog(tmp_path, writes=True)
    log.describe({**facts(), "constraints": [ASKED]})
    for step in range(1, 101):
        log.append(METRICS, line(step, 2.0 if step <= 75 else 1.75))
    held = {"eval_constraints/bc/value": 1.9, "eval_constraints/bc/violation": 0.1}
    held_out = {"eval_loss": 0.6, **held}
    log.append(METRICS, {"step": 100, "epoch": 1.0, **held_out})
    return read_run(tmp_path)


def test_a_sentence_says_whether_the_bound_was_held_and_on_what(run) -> None:
    assert constraint_in_words(ASKED, read_series(run.metrics)) == (
        "bc was held: in the last quarter of the run the training estimate was 1.75, the bound "
        "1.8 (1.5 × initial). On evaluation it is 1.9, 0.1 above the bound."
    )


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ([1.9, 1.91, 1.89, 1.9], "bc was not held: "),
        ([1.7, 1.91, 1.7, 1.91], "bc was held as far as chance lets one tell: "),
        ([1.9], "bc is above its bound, in too few log lines to tell it from chance: "),
    ],
)
def test_a_bound_that_is_passed_by_chance_is_not_said_to_be_passed(
    late: list[float], expected: str
) -> None:
    steps = range(101 - len(late), 101)
    lines = [line(step, value) for step, value in zip(steps, late, strict=True)]
    assert constraint_in_words(ASKED, read_series(lines)).startswith(expected)


def test_constraints_do_not_push_other_metrics_off_the_page() -> None:
    names = ("a", "b", "c")
    held = {f"constraints/{name}/{n}": 1.0 for name in names for n in range(7)}
    series = read_series([{"step": 1, **held, "bleu": 30.0}])
    assert [chart.title for chart in line_charts(series, "curves")] == ["bleu"]
    compared = [panel.title for panel in panels_of(series)]
    assert [title for title in compared if title != "bleu"] == list(held)


def test_value_violation_and_multiplier_have_a_chart_each_and_none_among_the_others(run) -> None:
    series = read_series(run.metrics)
    titles = [chart.title for chart in constraint_charts(run.facts, series)]
    assert titles == ["bc: value and bound", "bc: violation", "bc: multiplier"]
    labels = [each.label for each in constraint_charts(run.facts, series)[0].lines]
    assert labels == ["value", "bound", "value, evaluation"]
    for chart in constraint_charts(run.facts, series):
        assert len({each.role for each in chart.lines}) == len(chart.lines)  # told apart by colour
    assert not [one for one in line_charts(series, "curves") if "constraints" in one.title]


def test_the_report_has_a_section_of_them_only_where_there_are_any(run, tmp_path: Path) -> None:
    page = report_html(run)
    assert 'id="constraints"' in page
    assert "nu_pi, rate 50, multiplier from 1" in page
    RunLog(tmp_path / "plain", writes=True).describe(facts())
    assert 'id="constraints"' not in report_html(read_run(tmp_path / "plain"))


def test_the_models_card_says_what_held(run) -> None:
    card = model_card(run, About("first"))
    assert "## Constraints\n\n- bc was held: in the last quarter of the run" in card
    assert "What is bounded: nats a token of the chosen completions" in card
    assert "constraints/" not in card


def test_the_formula_says_at_most_and_no_equals_sign_beside_it() -> None:
    shown = str(formula_of({"objective": "r(y) = mean log p\nsubject to bc <= 7.55 (nu_pi)"}))
    assert "<dt>r(y)</dt><dd>mean log p</dd>" in shown
    assert '<dt class="bound">subject to bc</dt><dd>≤ 7.55 (nu_pi)</dd>' in shown
