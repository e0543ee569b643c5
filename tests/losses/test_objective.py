"""The objective as a whole: shares of a step, stability at the edges, the printed formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint import CPOConfig
from counterpoint.losses.objective import LossMath, Objective, math_of, sum_totals
from counterpoint.objectives import LOSSES
from counterpoint.pair_facts import PairFacts
from counterpoint.records import PairBatch, PairLogps


def logps_of(chosen: list[float], rejected: list[float], tokens: int = 10) -> PairLogps:
    count = torch.full((len(chosen),), tokens)
    as_tensor = lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)  # noqa: E731
    reference = torch.tensor([chosen, rejected], dtype=torch.float64).T + 0.5
    gold = {"gold": as_tensor(chosen) - 1, "gold_tokens": count + 1}
    sides = as_tensor(chosen), as_tensor(rejected)
    return PairLogps(*sides, count, count, reference=reference, **gold)


def batch_of(weight: list[float], tokens: int = 10) -> PairBatch:
    pairs = len(weight)
    ids = torch.zeros(3 * pairs, tokens + 2, dtype=torch.long)
    counts = torch.tensor([tokens, tokens, tokens + 1]).repeat_interleave(pairs)
    return PairBatch(
        layout="padded",
        pairs=(),
        cost=ids.numel(),
        input_ids=ids,
        attention_mask=ids.eq(0),
        inputs={},
        target_source=torch.arange(int(counts.sum())),
        target_ids=torch.zeros(int(counts.sum()), dtype=torch.long),
        target_counts=counts,
        weight=torch.tensor(weight, dtype=torch.float64),
        margin=torch.zeros(pairs, dtype=torch.float64),
        row_ids=torch.arange(pairs),
    )


def loss_of(objective: Objective, logps: PairLogps, weight: list[float] | None = None):
    batch = batch_of(weight or [1.0] * len(logps.chosen))
    terms = objective(logps, batch.margin)
    return objective.share(terms, batch.weight, objective.totals(batch))


def test_the_table_has_every_loss_type_of_the_configuration():
    assert tuple(LOSSES) == tuple(CPOConfig.__dataclass_fields__["loss_type"].metadata["choices"])


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_row_of_the_table_names_its_arithmetic(loss_type: str):
    assert isinstance(math_of(loss_type), LossMath)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_shares_of_a_step_add_up_to_the_step(loss_type: str):
    objective = Objective(loss_type, gamma=0.2 if loss_type != "sigmoid" else 0.0)
    chosen, rejected, weight = [-3.0, -9.0, -5.0], [-4.0, -8.0, -5.5], [0.3, 1.0, 1.7]
    whole = loss_of(objective, logps_of(chosen, rejected), weight)
    parts = [batch_of([w]) for w in weight]
    totals = sum_totals([objective.totals(part) for part in parts])
    shares = [
        objective.share(objective(logps_of([c], [r]), part.margin), part.weight, totals)
        for c, r, part in zip(chosen, rejected, parts, strict=True)
    ]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-14)


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("size", [0.0, -1e-12, -5.0, -5000.0])
def test_every_loss_is_finite_from_certainty_to_five_thousand_nats(loss_type: str, size: float):
    logps = logps_of([size, -1.0], [-1.0, size])
    loss = loss_of(Objective(loss_type, alpha=0.1 if loss_type == "alphapo" else 0.0), logps)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logps.chosen.grad).all()
    assert torch.isfinite(logps.rejected.grad).all()


def test_a_step_without_weight_costs_nothing():
    logps = logps_of([-3.0], [-4.0])
    loss = loss_of(Objective(), logps, [0.0])
    loss.backward()
    assert loss.item() == 0.0
    assert logps.chosen.grad.item() == 0.0


def test_without_weight_an_infinite_nll_does_not_reach_the_loss():
    terms = Objective(cpo_alpha=0.0)(logps_of([float("-inf")], [-1.0]), torch.zeros(1).double())
    share = Objective("hinge", cpo_alpha=0.0).share
    assert not torch.isnan(
        share(terms, torch.ones(1).double(), Objective().totals(batch_of([1.0])))
    )


def test_the_papers_nll_weighs_pairs_and_trls_weighs_tokens():
    batch = batch_of([1.0, 1.0])
    assert Objective(nll_reduction="token_mean").totals(batch).nll.item() == 20
    assert Objective(nll_reduction="sequence_sum").totals(batch).nll.item() == 2


def test_a_margin_of_a_pair_asks_for_more():
    logps, objective = logps_of([-3.0], [-4.0]), Objective(beta=1.0, cpo_alpha=0.0)
    asked = objective(logps, torch.tensor([1.0]).double()).preference
    assert asked.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_simper_is_a_difference_of_inverse_perplexities():
    # ten tokens each; means of -1 and -2 nats: -e^-1 + e^-2, slopes of a tenth of each
    logps = logps_of([-10.0], [-20.0])
    loss = loss_of(Objective("simper", cpo_alpha=0.0), logps)
    loss.backward()
    assert loss.item() == pytest.approx(-0.23254415793482963, rel=1e-15)
    assert logps.chosen.grad.item() == pytest.approx(-0.036787944117144235, rel=1e-14)
    assert logps.rejected.grad.item() == pytest.approx(0.01353352832366127, rel=1e-14)


def arpo(chosen: float, rejected: float, **options: float) -> tuple[float, float, float]:
    """Loss and slopes of one pair of ten tokens a side, beta 0.1, without an NLL."""
    logps = logps_of([chosen], [rejected])
    loss = loss_of(Objective("arpo", beta=0.1, cpo_alpha=0.0, **options), logps)
    loss.backward()
    return loss.item(), logps.chosen.grad.item(), logps.rejected.grad.item()


def test_arpo_is_the_authors_code_and_its_tau_has_a_slope():
    # means of -1 and -2: tau = 0.9 e^0.4 - 1 = 0.34264, the gap 0.1 (-10 + 20 tau) = -0.31472;
    # the slope of tau is 0.4 x 0.9 e^0.4 by the distance of the means, a tenth of that by a sum
    found = arpo(-10.0, -20.0)
    assert found[0] == pytest.approx(0.862834927575326, rel=1e-14)
    assert found[1] == pytest.approx(-0.11989121287629327, rel=1e-13)
    assert found[2] == pytest.approx(0.08189357684206973, rel=1e-13)


def test_arpo_as_the_paper_has_it_rejects_wholly_where_means_are_far_apart():
    # tau = e^1.5 - 1 is above 1, so that the gap is CPO's, 0.1 x 10, and tau moves nothing
    found = arpo(-10.0, -20.0, arpo_scale=1.0, arpo_eta=1.5)
    assert found == pytest.approx((0.31326168751822286, -0.026894142136999, 0.026894142136999))
    # means of -1 and -1.3: tau = e^0.45 - 1, the gap 0.1 (-10 + 13 tau)
    near = arpo(-10.0, -13.0, arpo_scale=1.0, arpo_eta=1.5)
    assert near[0] == pytest.approx(0.8322479271378969, rel=1e-14)


def test_at_equality_arpo_rejects_nothing_in_the_paper_and_pulls_up_in_the_code():
    # tau is 0: the gap is 0.1 x -10; and tau is -0.1: it is 0.1 (-10 - 1)
    paper, code = arpo(-10.0, -10.0, arpo_scale=1.0, arpo_eta=1.5), arpo(-10.0, -10.0)
    assert paper[0] == pytest.approx(1.3132616875182228, rel=1e-14)
    assert paper[2] == 0.0
    assert code[0] == pytest.approx(1.3873353251154308, rel=1e-14)
    # sigmoid(1.1) x 0.1 x -0.1: what raises the rejected completion lowers the loss
    assert code[2] == pytest.approx(-0.0075026010559511, rel=1e-12)


def with_facts(logps: PairLogps, **facts: list[float]) -> PairLogps:
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in facts.items()}
    return replace(logps, facts=PairFacts(**tensors))


def test_wpo_weighs_the_loss_of_a_pair_and_not_its_nll():
    # u adds up to -log 4 and to 0.5, which counts as 0: weights of a fourth and of 1
    logps = with_facts(logps_of([-3.0, -3.0], [-3.0, -3.0]), likeness=[-math.log(4), 0.5])
    objective = Objective(use_weighting=True)
    terms = objective(logps, torch.zeros(2).double())
    assert terms.preference.tolist() == pytest.approx([math.log(2) / 4, math.log(2)], rel=1e-15)
    assert terms.nll.tolist() == [3.0, 3.0]
    loss = objective.share(terms, torch.ones(2).double(), objective.totals(batch_of([1.0, 1.0])))
    # divided by the sum of the pairs' own weights: 2; an NLL of 6 nats over 20 tokens
    assert loss.item() == pytest.approx(1.25 * math.log(2) / 2 + 0.3, rel=1e-15)
    loss.backward()
    # the weight is a constant: 0.1 x sigmoid(0), halved, a fourth of that for the first; the NLL
    slopes = [-0.1 / 2 / 2 / 4 - 1 / 20, -0.1 / 2 / 2 - 1 / 20]
    assert logps.chosen.grad.tolist() == pytest.approx(slopes, rel=1e-14)


def test_tokens_past_the_shorter_completion_weigh_alpha():
    # chosen: 3 nats on shared places and 2 beyond; rejected: 4, nothing beyond
    logps = with_facts(logps_of([-5.0], [-4.0]), chosen_shared=[-3.0], rejected_shared=[-4.0])
    for alpha, score in ((0.0, -3.0), (0.25, -3.5), (1.0, -5.0)):
        objective = Objective(ld_alpha=alpha, beta=1.0, cpo_alpha=0.0)
        terms = objective(logps, torch.zeros(1).double())
        assert terms.chosen_logps.item() == pytest.approx(score)
        gap = score + 4.0
        assert terms.preference.item() == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-14)


@pytest.mark.parametrize("options", [{"use_weighting": True}, {"ld_alpha": 0.5}])
def test_facts_that_were_not_asked_for_are_missed(options: dict[str, Any]):
    with pytest.raises(ValueError, match="which these pairs do not have"):
        Objective(**options)(logps_of([-1.0], [-2.0]), torch.zeros(1).double())


def test_weights_and_lengths_are_printed():
    assert Objective(use_weighting=True, ld_alpha=0.5, cpo_alpha=0.0).formula() == (
        "loss = mean over pairs of w * (-log sigmoid(gap))\n"
        "gap  = 0.1 * (r(chosen) - r(rejected))\n"
        "r(y) = sum log p, past the shorter completion's length times 0.5\n"
        "w    = min(1, exp(u(chosen) + u(rejected))), held constant; u(y) = mean of log p - "
        "log sum p^2"
    )


def test_arpo_prints_its_tau():
    assert Objective("arpo", cpo_alpha=0.5).formula() == (
        "loss = mean over pairs of -log sigmoid(gap + 0.1 * (1 - tau) * r(rejected)) + 0.5 * NLL\n"
        "gap  = 0.1 * (r(chosen) - r(rejected))\n"
        "r(y) = sum log p\n"
        "tau  = min(0.9 * exp(0.4 * |difference of mean log p|) - 1, 1)\n"
        "NLL  = mean over the step's chosen tokens of -log p"
    )


def test_the_formula_names_every_number():
    text = Objective("simpo", beta=2.5, gamma=1.25, label_smoothing=0.1, cpo_alpha=0.3).formula()
    assert text == (
        "loss = mean over pairs of -0.9 * log sigmoid(gap) - 0.1 * log sigmoid(-gap) + 0.3 * NLL\n"
        "gap  = 2.5 * (r(chosen) - r(rejected)) - 1.25\n"
        "r(y) = mean log p\n"
        "NLL  = mean over the step's chosen tokens of -log p"
    )
