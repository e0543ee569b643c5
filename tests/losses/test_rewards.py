"""Rewards: limits, range and stability."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.losses.rewards import alphapo_reward, inverse_perplexity, log_odds


def logp(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_alphapo_without_shape_is_the_log_probability():
    x = logp(-3.0, -0.1)
    assert alphapo_reward(x, alpha=0.0) is x


def test_alphapo_of_a_small_alpha_approaches_the_log_probability():
    assert alphapo_reward(logp(-2.0), alpha=1e-9).item() == pytest.approx(-2.0, rel=1e-8)


def test_alphapo_of_alpha_one_is_one_minus_the_inverse_probability():
    assert alphapo_reward(logp(math.log(0.25)), alpha=1.0).item() == pytest.approx(-3.0)


@pytest.mark.parametrize("alpha", [-2.0, -0.25, -1e-3])
def test_a_negative_alpha_bounds_the_reward_however_improbable_the_text(alpha: float):
    x = logp(-5000.0, -100.0, 0.0)
    reward = alphapo_reward(x, alpha=alpha)
    reward.sum().backward()
    assert torch.isfinite(reward).all()
    assert torch.isfinite(x.grad).all()
    assert (reward >= 1 / alpha).all()


def test_the_slope_of_alphapo_survives_where_the_probability_underflows():
    """exp(-800) is 0 in float64, yet p^-alpha is not."""
    x = logp(-800.0)
    alphapo_reward(x, alpha=0.1).sum().backward()
    assert x.grad.item() == pytest.approx(math.exp(80))


@given(st.floats(-30, -1e-3))
def test_log_odds_is_the_logarithm_of_the_odds(value: float):
    p = math.exp(value)
    assert log_odds(logp(value)).item() == pytest.approx(math.log(p / (1 - p)), rel=1e-9, abs=1e-9)


def test_even_odds_are_zero():
    assert log_odds(logp(math.log(0.5))).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainty_has_finite_odds_and_slope(dtype: torch.dtype):
    x = torch.zeros(1, dtype=dtype, requires_grad=True)
    odds = log_odds(x)
    odds.sum().backward()
    assert torch.isfinite(odds).all()
    assert torch.isfinite(x.grad).all()


def test_the_inverse_perplexity_of_a_completion_is_the_mean_probability_of_its_tokens():
    # geometric mean: two tokens of 1/2 and 1/8 have the perplexity 4
    x = logp((math.log(1 / 2) + math.log(1 / 8)) / 2)
    assert inverse_perplexity(x).item() == pytest.approx(1 / 4, rel=1e-15)
    inverse_perplexity(x).backward()
    assert x.grad.item() == pytest.approx(1 / 4, rel=1e-15)
