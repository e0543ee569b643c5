"""Log lines become the curves they were logged for."""

from __future__ import annotations

import math

import pytest

from counterpoint.report.charts import LineChart
from counterpoint.report.curves import line_charts, panels_of, read_series, sets_of


def chart(lines: list[dict[str, object]], key: str) -> LineChart:
    return next(one for one in line_charts(read_series(lines), "curves") if one.key == key)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("loss", ("training", "loss")),
        ("rewards/margins", ("training", "rewards/margins")),
        ("eval_loss", ("evaluation", "loss")),
        ("eval_nll_loss", ("evaluation", "nll_loss")),
        ("eval_rewards/accuracies", ("evaluation", "rewards/accuracies")),
        ("eval_helpful_loss", ("helpful", "loss")),
        ("eval_helpful_nll_loss", ("helpful", "nll_loss")),
        ("eval_helpful_base_loss", ("helpful_base", "loss")),
        ("eval_helpful_base_rewards/chosen", ("helpful_base", "rewards/chosen")),
        ("eval_helpful_bleu", ("helpful", "bleu")),
        ("eval_bleu", ("evaluation", "bleu")),
    ],
)
def test_a_key_names_its_set_and_its_metric(key: str, place: tuple[str, str]) -> None:
    line = {"eval_helpful_loss": 0.0, "eval_helpful_base_loss": 0.0, key: 1.5, "step": 3}
    assert read_series([line])[place].values == (1.5,)


@pytest.mark.parametrize("key", ["eval_runtime", "eval_helpful_samples_per_second", "epoch"])
def test_what_measures_no_model_is_no_curve(key: str) -> None:
    assert read_series([{key: 1.0, "step": 1}]) == {}


@pytest.mark.parametrize("value", ["0.5", None, True, [1.0]])
def test_what_is_no_number_is_no_curve(value: object) -> None:
    assert read_series([{"loss": value, "step": 1}]) == {}


def test_a_step_that_was_done_again_counts_as_it_was_done_last() -> None:
    lines = [{"step": step, "loss": loss} for step, loss in [(1, 1), (2, 9), (3, 9), (2, 2)]]
    series = read_series(lines)["training", "loss"]
    assert (series.steps, series.values) == ((1, 2, 3), (1.0, 2.0, 9.0))


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 2.0}]
    [line] = chart(lines, "loss").lines
    assert math.isnan(line.y[1])
    assert line.y[::2] == (1.0, 2.0)


def test_evaluation_sets_lie_over_training_each_unlike_the_others() -> None:
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "eval_a_loss": 2.0},
        {"step": 1, "eval_b_loss": 3.0},
    ]
    found = chart(lines, "loss").lines
    assert [(line.label, line.y) for line in found] == [
        ("training", (1.0,)),
        ("a", (2.0,)),
        ("b", (3.0,)),
    ]
    assert len({(line.role, line.dash) for line in found}) == 3


def test_chosen_and_rejected_keep_their_colours_over_the_sets() -> None:
    metrics = {"logps/chosen": -1.0, "logps/rejected": -2.0}
    lines = [
        {"step": 1, **metrics},
        {"step": 1, **{f"eval_{k}": v for k, v in metrics.items()}},
    ]
    roles = [(line.label, line.role, line.dash) for line in chart(lines, "logps").lines]
    assert roles == [
        ("chosen, training", "series-1", "solid"),
        ("rejected, training", "series-2", "solid"),
        ("chosen, evaluation", "series-1", "dashed"),
        ("rejected, evaluation", "series-2", "dashed"),
    ]


def test_an_interval_lies_around_its_line_and_has_no_chart_of_its_own() -> None:
    ends = {"eval_rewards/accuracies_low": 0.4, "eval_rewards/accuracies_high": 0.6}
    lines = [{"step": 1, "eval_rewards/accuracies": 0.5, **ends}]
    [line] = chart(lines, "accuracies").lines
    assert (line.low, line.y, line.high) == ((0.4,), (0.5,), (0.6,))
    assert [panel.key for panel in panels_of(read_series(lines))] == ["accuracies"]
    # where the interval is not known everywhere, none is drawn
    [line] = chart([*lines, {"step": 2, "eval_rewards/accuracies": 0.7}], "accuracies").lines
    assert (line.low, line.high) == ((), ())


def test_one_set_alone_is_not_named_in_every_legend() -> None:
    lines = [{"step": 1, "logps/chosen": -1.0, "logps/rejected": -2.0}]
    assert [line.label for line in chart(lines, "logps").lines] == ["chosen", "rejected"]


def test_a_metric_that_nobody_foresaw_has_a_chart_of_its_own() -> None:
    table = read_series([{"step": 1, "loss": 1.0, "multiplier/nll": 0.3}])
    assert [panel.title for panel in panels_of(table)] == ["Loss", "multiplier/nll"]
    assert sets_of(table) == ("training",)


def test_a_logarithmic_scale_is_left_where_a_value_has_no_logarithm() -> None:
    lines = [{"step": n, "grad_norm": float(n)} for n in (1, 2)]
    assert chart(lines, "grad_norm").log
    assert not chart([*lines, {"step": 3, "grad_norm": 0.0}], "grad_norm").log
