"""The preference losses, by the values one can work out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.losses.preference import hinge_loss, ipo_loss, repo_loss, sigmoid_loss


def gap(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_a_gap_of_zero_costs_log_two():
    assert sigmoid_loss(gap(0.0)).item() == pytest.approx(math.log(2), rel=1e-15)


def test_a_gap_of_zero_costs_log_two_however_labels_are_smoothed():
    assert sigmoid_loss(gap(0.0), label_smoothing=0.3).item() == pytest.approx(math.log(2))


def test_the_logistic_slope_at_zero_is_minus_a_half():
    x = gap(0.0)
    sigmoid_loss(x).sum().backward()
    assert x.grad.item() == -0.5


def test_smoothed_labels_are_at_rest_where_the_flipped_probability_is_reached():
    x = gap(math.log(0.9 / 0.1))
    sigmoid_loss(x, label_smoothing=0.1).sum().backward()
    assert x.grad.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e300])
def test_a_huge_gap_costs_its_size_or_nothing(size):
    assert sigmoid_loss(gap(-size, size)).tolist() == [size, 0.0]


def test_hinge_costs_what_lacks_to_one_nat():
    x = gap(-1.0, 0.0, 0.25, 1.0, 2.0)
    loss = hinge_loss(x)
    loss.sum().backward()
    assert loss.tolist() == [2.0, 1.0, 0.75, 0.0, 0.0]
    assert x.grad.tolist() == [-1.0, -1.0, -1.0, 0.0, 0.0]


def test_ipo_is_at_rest_at_half_the_inverse_of_beta():
    x = gap(5.0, 4.0)
    loss = ipo_loss(x, beta=0.1)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1.0]
    assert x.grad.tolist() == [0.0, -2.0]


def test_repo_costs_what_lacks_to_the_margin():
    assert repo_loss(gap(-0.5, 0.0, 3.0)).tolist() == [0.5, 0.0, 0.0]


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_a_wider_gap_never_costs_more(one: float, other: float):
    low, high = gap(min(one, other)), gap(max(one, other))
    for loss in (sigmoid_loss, hinge_loss, repo_loss):
        assert loss(high).item() <= loss(low).item()
