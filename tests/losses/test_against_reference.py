"""Losses that compare with a reference: literal values and slopes, and what they need."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from counterpoint import ModelError
from counterpoint.losses.objective import Objective
from counterpoint.objectives import LOSSES
from counterpoint.pair_facts import PairFacts
from counterpoint.records import PairLogps

MARGIN = torch.zeros(1, dtype=torch.float64)


def logps(chosen: float, rejected: float, *reference: float) -> PairLogps:
    def one(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64, requires_grad=True)

    count = torch.tensor([10])
    said = torch.tensor([reference], dtype=torch.float64) if reference else None
    return PairLogps(one(chosen), one(rejected), count, count, reference=said)


def value_and_slopes(objective: Objective, pair: PairLogps) -> tuple[float, float, float]:
    loss = objective(pair, MARGIN).preference
    loss.sum().backward()
    assert pair.chosen.grad is not None
    assert pair.rejected.grad is not None
    return loss.item(), pair.chosen.grad.item(), pair.rejected.grad.item()


def test_dpo_is_the_logistic_loss_of_two_log_ratios():
    # ratios of 1 and -0.5 nats, beta 0.1: log(1 + e^-0.15), slopes of beta times its sigmoid
    found = value_and_slopes(Objective("dpo", cpo_alpha=0.0), logps(-10.0, -12.0, -11.0, -11.5))
    assert found == pytest.approx(
        (0.6209570477895321, -0.04625701546562505, 0.04625701546562505), rel=1e-14
    )


def test_dpo_costs_log_two_where_the_model_is_its_reference():
    loss = Objective("dpo", cpo_alpha=0.0)(logps(-10.0, -12.0, -10.0, -12.0), MARGIN).preference
    assert loss.item() == pytest.approx(0.6931471805599453, rel=1e-15)


def test_dpo_s_rewards_are_beta_times_the_log_ratios():
    terms = Objective("dpo", beta=0.5)(logps(-10.0, -12.0, -11.0, -11.5), MARGIN)
    assert (terms.chosen_rewards.item(), terms.rejected_rewards.item()) == (0.5, -0.25)
    assert (terms.chosen_logps.item(), terms.rejected_logps.item()) == (-10.0, -12.0)


def test_hypo_takes_a_reference_that_prefers_the_rejected_for_neutral():
    # the reference is at -2: DPO's gap would be 0.1 (1 + 2), HyPO's is 0.1 x 1
    found = value_and_slopes(Objective("hypo", cpo_alpha=0.0), logps(-10.0, -11.0, -14.0, -12.0))
    assert found == pytest.approx(
        (0.6443966600735709, -0.04750208125210601, 0.04750208125210601), rel=1e-14
    )


def test_hypo_is_dpo_where_the_reference_prefers_the_chosen():
    pair = logps(-10.0, -12.0, -11.0, -11.5)
    one, other = (Objective(name)(pair, MARGIN).preference for name in ("hypo", "dpo"))
    assert torch.equal(one, other)


def test_dpo_positive_charges_for_what_the_chosen_has_lost():
    # ratios of -0.5 and -2: 0.3 (1.5 - 2 x 0.5) = 0.15; chosen has (1 + 2) times the slope
    objective = Objective("dpop", beta=0.3, dpop_lambda=2.0, cpo_alpha=0.0)
    found = value_and_slopes(objective, logps(-10.5, -14.0, -10.0, -12.0))
    slope = 0.3 * 0.4625701546562505
    assert found == pytest.approx((0.6209570477895321, -3 * slope, slope), rel=1e-14)


def test_dpo_positive_is_dpo_while_the_chosen_has_lost_nothing():
    pair = logps(-10.0, -12.0, -11.0, -11.5)
    one, other = (Objective(n, dpop_lambda=50.0)(pair, MARGIN).preference for n in ("dpop", "dpo"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("off", [-1e-7, 0.0, 1e-7])
def test_rounding_does_not_decide_on_which_side_of_its_kink_dpo_positive_begins(off: float):
    objective = Objective("dpop", beta=0.3, dpop_lambda=50.0)
    loss, slope, _ = value_and_slopes(objective, logps(-10.0 * (1 + off), -12.0, -10.0, -12.0))
    assert loss == pytest.approx(0.6931471805599453, rel=1e-6)
    assert slope == pytest.approx(-0.15, rel=1e-6)


def test_apo_zero_lifts_the_chosen_and_lowers_the_rejected():
    # ratios of 1 and -0.5 nats, beta 0.1: sigmoid(-0.1) + sigmoid(-0.05), slopes of their own
    found = value_and_slopes(
        Objective("apo_zero", cpo_alpha=0.0), logps(-10.0, -12.0, -11.0, -11.5)
    )
    assert found == pytest.approx(
        (0.9625234160368497, -0.024937604019289197, 0.024984381508111643), rel=1e-14
    )


def test_apo_down_lowers_both_and_the_rejected_more():
    # where the model is its reference both slopes of the chosen cancel: sigmoid'(0) - sigmoid'(0)
    found = value_and_slopes(
        Objective("apo_down", cpo_alpha=0.0), logps(-10.0, -12.0, -10.0, -12.0)
    )
    assert found == pytest.approx((1.0, 0.0, 0.025), rel=1e-14, abs=1e-17)
    # a gap of 0.15 has the smaller slope, so that the chosen falls from above the reference
    _, chosen, rejected = value_and_slopes(
        Objective("apo_down", cpo_alpha=0.0), logps(-10.0, -12.0, -11.0, -11.5)
    )
    assert 0 < chosen < rejected


def test_nca_asks_the_chosen_to_rise_to_log_two_and_no_further():
    objective = Objective("nca_pair", beta=0.5, cpo_alpha=0.0)
    begun = value_and_slopes(objective, logps(-10.0, -12.0, -10.0, -12.0))
    # 2 log 2; slopes of 0.5 (-1/2 + 1/4) and 0.5 x 1/4
    assert begun == pytest.approx((1.3862943611198906, -0.125, 0.125), rel=1e-14)
    there = -10.0 + math.log(2) / 0.5
    _, chosen, rejected = value_and_slopes(objective, logps(there, -12.0, -10.0, -12.0))
    assert chosen == pytest.approx(0.0, abs=1e-15)
    assert rejected == pytest.approx(0.125)
    _, past, _ = value_and_slopes(objective, logps(there + 1, -12.0, -10.0, -12.0))
    assert past > 0


@pytest.mark.parametrize("loss_type", ["apo_zero", "apo_down", "nca_pair"])
@pytest.mark.parametrize("far", [-1e5, 1e5])
def test_what_lies_far_from_the_reference_has_a_finite_loss(loss_type: str, far: float):
    found = value_and_slopes(Objective(loss_type), logps(far, -far, 0.0, 0.0))
    assert all(map(math.isfinite, found))


def test_only_the_loss_with_a_gap_is_moved_by_a_margin():
    pair = logps(-10.0, -12.0, -11.0, -11.5)
    moved = {
        name: not torch.equal(
            Objective(name)(pair, MARGIN).preference, Objective(name)(pair, MARGIN + 1).preference
        )
        for name in ("apo_zero", "apo_down", "nca_pair")
    }
    assert moved == {"apo_zero": False, "apo_down": True, "nca_pair": False}
    assert moved == {name: LOSSES[name].has_gap for name in moved}


def test_a_loss_without_a_gap_prints_none():
    assert Objective("apo_zero", cpo_alpha=0.0).formula().splitlines() == [
        "loss = mean over pairs of 1 - sigmoid(0.1 * r(chosen)) + sigmoid(0.1 * r(rejected))",
        "r(y) = sum log p - sum log p of the reference",
    ]
    assert Objective("apo_down", cpo_alpha=0.0).formula().splitlines()[:2] == [
        "loss = mean over pairs of sigmoid(0.1 * r(chosen)) + 1 - sigmoid(gap)",
        "gap  = 0.1 * (r(chosen) - r(rejected))",
    ]
    assert Objective("nca_pair", cpo_alpha=0.0).formula().splitlines()[0] == (
        "loss = mean over pairs of -log sigmoid(0.1 * r(chosen)) "
        "- 0.5 * log sigmoid(-0.1 * r(chosen)) - 0.5 * log sigmoid(-0.1 * r(rejected))"
    )


def test_tokens_past_the_shorter_completion_weigh_alpha_in_model_and_reference():
    # the chosen has 1 nat past the shorter's length; the reference's sums come weighed already
    facts = PairFacts(torch.tensor([-9.0]).double(), torch.tensor([-12.0]).double())
    pair = replace(logps(-10.0, -12.0, -10.5, -11.5), facts=facts)
    terms = Objective("dpo", beta=0.5, ld_alpha=0.5, cpo_alpha=0.0)(pair, MARGIN)
    # ratios of -9.5 + 10.5 = 1 and -12 + 11.5 = -0.5 nats: log(1 + e^-0.75)
    assert terms.preference.item() == pytest.approx(0.38687100611489994, rel=1e-14)
    terms.preference.sum().backward()
    assert pair.chosen.grad is not None
    # half of beta times sigmoid(-0.75): the sum has 1 nat of which half counts
    assert pair.chosen.grad.item() == pytest.approx(-0.5 * 0.5 * 0.320821300824607, rel=1e-14)
    assert terms.chosen_rewards.item() == 0.5


def test_a_margin_of_a_pair_asks_for_more_than_the_reference_has():
    pair = logps(-10.0, -12.0, -10.0, -12.0)
    wanted = Objective("dpo")(pair, MARGIN + 0.2).preference
    assert wanted.item() == pytest.approx(0.7981388693815918, rel=1e-14)


@pytest.mark.parametrize("loss_type", ["dpo", "hypo", "dpop"])
def test_pairs_that_no_reference_has_seen_are_refused(loss_type: str):
    pair = replace(logps(-10.0, -12.0), reference=None)
    with pytest.raises(ModelError, match=r"^CP337 .*no log-probabilities of one"):
        Objective(loss_type)(pair, MARGIN)


def test_the_formulas_say_what_is_compared():
    lines = {
        name: Objective(name, beta=0.3, dpop_lambda=50.0, cpo_alpha=0.0).formula().splitlines()
        for name in ("dpo", "hypo", "dpop")
    }
    rest = [
        "gap  = 0.3 * (r(chosen) - r(rejected))",
        "r(y) = sum log p - sum log p of the reference",
    ]
    assert {name: one[1:] for name, one in lines.items()} == dict.fromkeys(lines, rest)
    assert [one[0] for one in lines.values()] == [
        "loss = mean over pairs of -log sigmoid(gap)",
        "loss = mean over pairs of -log sigmoid(gap - 0.3 * max(0, D)), D the reference's "
        "sum log p(rejected) - sum log p(chosen)",
        "loss = mean over pairs of -log sigmoid(gap - 15 * max(0, -r(chosen)))",
    ]


def test_the_formulas_say_which_tokens_count_less():
    lines = Objective("hypo", beta=0.3, ld_alpha=0.5, cpo_alpha=0.0).formula().splitlines()
    assert lines[0].endswith(" sum log p(rejected) - sum log p(chosen), weighed alike")
    assert lines[2] == (
        "r(y) = sum log p - sum log p of the reference, past the shorter completion's length "
        "times 0.5"
    )
