"""The objective as a whole: shares of a step, stability at the edges, the printed formula."""

from __future__ import annotations

import pytest
import torch

from counterpoint import CPOConfig
from counterpoint.losses.objective import LossMath, Objective, math_of, sum_totals
from counterpoint.objectives import LOSSES
from counterpoint.records import PairBatch, PairLogps


def logps_of(chosen: list[float], rejected: list[float], tokens: int = 10) -> PairLogps:
    count = torch.full((len(chosen),), tokens)
    as_tensor = lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)  # noqa: E731
    return PairLogps(as_tensor(chosen), as_tensor(rejected), count, count)


def batch_of(weight: list[float], tokens: int = 10) -> PairBatch:
    pairs = len(weight)
    ids = torch.zeros(2 * pairs, tokens + 1, dtype=torch.long)
    return PairBatch(
        layout="padded",
        pairs=(),
        cost=ids.numel(),
        input_ids=ids,
        attention_mask=ids.eq(0),
        inputs={},
        target_source=torch.arange(2 * pairs * tokens),
        target_ids=torch.zeros(2 * pairs * tokens, dtype=torch.long),
        target_counts=torch.full((2 * pairs,), tokens),
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


def test_the_formula_names_every_number():
    text = Objective("simpo", beta=2.5, gamma=1.25, label_smoothing=0.1, cpo_alpha=0.3).formula()
    assert text == (
        "loss = mean over pairs of -0.9 * log sigmoid(gap) - 0.1 * log sigmoid(-gap) + 0.3 * NLL\n"
        "gap  = 2.5 * (r(chosen) - r(rejected)) - 1.25\n"
        "r(y) = mean log p\n"
        "NLL  = mean over the step's chosen tokens of -log p"
    )
