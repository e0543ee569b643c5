"""Numbers are honest: means over what they count, steps that were skipped count nowhere."""

from __future__ import annotations

import pytest
import torch

from counterpoint.metrics import MetricSums, means


def entry(total: float, count: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(total), torch.tensor(count)


def test_a_mean_is_of_everything_counted_and_not_of_means():
    sums = MetricSums()
    sums.add({"x": entry(10, 1)})
    sums.add({"x": entry(10, 4)})
    sums.apply()
    assert means(sums.read()) == {"x": 4.0}


def test_a_discarded_step_counts_nowhere():
    sums = MetricSums()
    sums.add({"x": entry(1, 1)})
    sums.apply()
    sums.add({"x": entry(float("nan"), 1)})
    sums.discard()
    assert means(sums.read()) == {"x": 1.0}


def test_what_was_read_is_not_read_again():
    sums = MetricSums()
    sums.add({"x": entry(1, 1)})
    sums.apply()
    assert sums.read()
    assert sums.read() == {}


def test_a_metric_that_counted_nothing_is_left_out():
    assert means({"x": (0.0, 0.0), "y": (3.0, 2.0)}) == {"y": 1.5}


def test_many_small_terms_do_not_vanish_beside_a_large_one():
    """In fp32 ten thousand times 1e-4 added to 1e4 would be lost."""
    sums = MetricSums()
    sums.add({"x": entry(1e4, 1)})
    for _ in range(10_000):
        sums.add({"x": entry(1e-4, 0)})
    sums.apply()
    assert means(sums.read())["x"] == pytest.approx(10_001, rel=1e-7)
