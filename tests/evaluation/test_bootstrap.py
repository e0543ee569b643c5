"""Intervals: what resampling must give where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from counterpoint.evaluation.bootstrap import Bootstrap, BootstrapEstimate, Ratio, Resampling, mean

PLAN = Resampling(resamples=2000, seed=3)


def of(
    values, *, prompts=None, plan: Resampling = PLAN, is_share: bool = False
) -> BootstrapEstimate:
    names = np.arange(len(values)) if prompts is None else np.asarray(prompts)
    ratios = {"it": mean(values, is_share=is_share)}
    return Bootstrap(names, plan).estimates(ratios)["it"]


def binomial_quantile(share: float, trials: int, chance: float) -> float:
    """The least count, as a share of the trials, that a share of outcomes stays at or below."""
    below = 0.0
    for count in range(trials + 1):
        below += math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        if below >= share:
            return count / trials
    raise AssertionError(below)


def test_the_draws_of_a_share_are_binomial():
    """Resampled wins are Binomial(n, p) exactly, so the ends are its quantiles."""
    wins = np.repeat([1.0, 0.0], [280, 120])
    found = of(wins)
    width = 2 * 1.96 * math.sqrt(0.7 * 0.3 / 400)
    # four standard errors of a quantile of 2,000 draws, and one win
    reach = 4 * 0.015 * width + 1 / 400
    assert found.value == pytest.approx(0.7, rel=1e-15)
    assert found.low == pytest.approx(binomial_quantile(0.025, 400, 0.7), abs=reach)
    assert found.high == pytest.approx(binomial_quantile(0.975, 400, 0.7), abs=reach)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    plan, trials = Resampling(resamples=400), 200
    covered = 0
    for seed in range(trials):
        values = np.random.default_rng(seed).normal(2.0, 1.0, 80)
        found = of(values, plan=plan)
        covered += found.low <= 2.0 <= found.high
    # 0.95, less three standard errors of 200 trials and the percentile's own bias at 80 values
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials) - 0.01 <= covered / trials <= 1


def test_saying_every_pair_four_times_makes_nothing_surer():
    values = np.random.default_rng(0).normal(size=50)
    once = of(values)
    four_times = of(np.repeat(values, 4), prompts=np.repeat(np.arange(50), 4))
    assert (once.low, once.high) == pytest.approx((four_times.low, four_times.high), rel=1e-12)
    careless = of(np.repeat(values, 4))
    assert careless.high - careless.low < 0.6 * (once.high - once.low)


def test_a_mean_over_tokens_is_a_ratio_of_sums():
    nll, tokens = np.array([10.0, 30.0]), np.array([5.0, 10.0])
    bootstrap = Bootstrap(np.arange(2), PLAN)
    ratios = {"nll": Ratio(nll, tokens), "perplexity": Ratio(nll, tokens, curve=np.exp)}
    found = bootstrap.estimates(ratios)
    assert found["nll"].value == pytest.approx(40 / 15)
    # two pairs: both draws of the first, or both of the second, are the extremes
    assert (found["nll"].low, found["nll"].high) == pytest.approx((2.0, 3.0))
    for end in ("value", "low", "high"):
        assert getattr(found["perplexity"], end) == pytest.approx(
            math.exp(getattr(found["nll"], end))
        )


def test_what_moved_every_pair_alike_is_known_without_doubt():
    """The same draws on both sides: only what differs between pairs is uncertain."""
    values = np.random.default_rng(1).normal(size=60)
    bootstrap = Bootstrap(np.arange(60), PLAN)
    found = bootstrap.differences({"it": mean(values)}, {"it": mean(values + 0.25)})["it"]
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25), rel=1e-12)
    alone = of(values)
    assert alone.high - alone.low > 0.3


def test_a_perfect_share_is_bounded_by_what_chance_could_have_hidden():
    found = of(np.ones(20), is_share=True)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low**20 == pytest.approx(0.025)
    none = of(np.zeros(20), is_share=True)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - found.low))
    # twenty pairs of five prompts are five trials
    few = of(np.ones(20), prompts=np.arange(20) // 4, is_share=True)
    assert few.low**5 == pytest.approx(0.025)


def test_a_few_pairs_that_all_turned_prove_little():
    """Three of three may hide seven in ten that would not have; three hundred hide hardly any."""
    for count, clear in ((3, False), (300, True)):
        wrong, right = (mean(np.full(count, x), is_share=True) for x in (0.0, 1.0))
        bootstrap = Bootstrap(np.arange(count), PLAN)
        won = bootstrap.differences({"it": wrong}, {"it": right})["it"]
        assert (won.value, won.high, won.low > 0) == (1, 1, clear)
        assert won.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / count)))
        lost = bootstrap.differences({"it": right}, {"it": wrong})["it"]
        assert (lost.value, lost.low, lost.high) == pytest.approx((-1, -1, -won.low))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_three_pairs_that_stayed_perfect_do_not_prove_that_nothing_changed(share: float):
    both = mean(np.full(3, share), is_share=True)
    found = Bootstrap(np.arange(3), PLAN).differences({"it": both}, {"it": both})["it"]
    hidden = 1 - 0.025 ** (1 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -hidden, hidden))


def test_a_part_of_the_pairs_is_drawn_with_all_of_them():
    """A bin that some draws leave empty counts the others; one of no pair has no interval."""
    inside = np.array([1.0, 0.0, 0.0, 0.0])
    ratios = {"bin": Ratio(inside * 2, inside), "empty": Ratio(0 * inside, 0 * inside)}
    found = Bootstrap(np.arange(4), PLAN).estimates(ratios)
    assert found["bin"] == BootstrapEstimate(2.0, 2.0, 2.0)
    assert all(math.isnan(x) for x in (found["empty"].value, found["empty"].low))


def test_the_same_seed_draws_the_same():
    values = np.random.default_rng(2).normal(size=40)
    assert of(values) == of(values)
    assert of(values) != of(values, plan=Resampling(seed=4))
