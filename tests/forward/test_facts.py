"""What a loss asks for beside sums: shared places, and how like the policy's samples a pair is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterpoint.forward import square_sums
from counterpoint.forward.facts import facts_of
from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.square_sums import log_square_sums
from counterpoint.pair_facts import NO_FACTS, FactsAsked
from tests.forward.test_pair_forward import token_pairs

ALL = FactsAsked(shared=True, likeness=True)


def head_of(bias: bool, **more: Any) -> Head:
    torch.manual_seed(0)
    return Head(nn.Linear(8, 50, bias=bias).double(), **more)


def truth(logits: Tensor) -> Tensor:
    return logits.softmax(-1).square().sum(-1).log()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("more", [{}, {"scale": 0.3}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("rows_a_chunk", [1, 3, 1000])
def test_squares_are_those_of_the_softmax_of_every_head(
    frozen: bool, more: dict[str, Any], rows_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(square_sums.LOGITS_PER_CHUNK, "cpu", 50 * rows_a_chunk)
    head = head_of(bias=True, **more)
    head.module.requires_grad_(not frozen)
    hidden = 3 * torch.randn(7, 8, dtype=torch.float64)
    logits = head.module(hidden).detach() * more.get("scale", 1.0)
    if "softcap" in more:
        logits = 2.0 * torch.tanh(logits / 2.0)
    found = log_square_sums(head.projection(hidden), hidden)
    torch.testing.assert_close(found, truth(logits), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad


def test_squares_of_a_head_that_is_another_module_and_of_logits() -> None:
    class Adapted(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows) + 1.0 * rows.sum(-1, keepdim=True).sin()

    torch.manual_seed(0)
    module, hidden = Adapted(8, 50).double(), torch.randn(5, 8, dtype=torch.float64)
    logits = module(hidden).detach()
    for head, rows in ((Head(module), hidden), (Head(module, dense=True), logits)):
        found = log_square_sums(head.projection(rows), rows)
        torch.testing.assert_close(found, truth(logits), rtol=1e-12, atol=1e-12)


def test_a_token_that_cannot_be_is_no_number_less() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    head = Head(nn.Linear(1, 3), dense=True)
    found = log_square_sums(head.projection(logits), logits)
    assert found.tolist() == pytest.approx([math.log(0.5)], rel=1e-15)


def test_a_uniform_policy_finds_every_pair_like_its_own() -> None:
    head = head_of(bias=False)
    nn.init.zeros_(head.module.weight)
    batch = PADDED.collate(token_pairs())
    rows = torch.randn(len(batch.target_ids), 8, dtype=torch.float64)
    logps = torch.full((len(rows),), -math.log(50), dtype=torch.float64)
    found = facts_of(ALL, logps, lambda: rows, head, batch)
    torch.testing.assert_close(found.likeness, torch.zeros(len(batch)).double(), atol=1e-12, rtol=0)


def test_shared_places_are_as_many_as_the_shorter_completion_has() -> None:
    batch = PADDED.collate(token_pairs())
    ones = torch.ones(len(batch.target_ids), dtype=torch.float64)
    found = facts_of(FactsAsked(shared=True), ones, lambda: ones[:, None], head_of(False), batch)
    counts = batch.target_counts.view(2, -1)
    for side in (found.chosen_shared, found.rejected_shared):
        assert side is not None
        assert side.tolist() == counts.amin(0).tolist()
    assert counts[0].tolist() != counts[1].tolist()
    assert found.likeness is None


def test_the_first_places_are_the_shared_ones() -> None:
    batch = PADDED.collate(token_pairs())
    places = torch.cat([torch.arange(n) for n in batch.target_counts.tolist()]).double()
    found = facts_of(
        FactsAsked(shared=True), places, lambda: places[:, None], head_of(False), batch
    )
    shorter = batch.target_counts.view(2, -1).amin(0)
    assert found.chosen_shared is not None
    assert found.chosen_shared.tolist() == (shorter * (shorter - 1) / 2).tolist()


def test_layouts_find_the_same_facts(models: Any) -> None:
    model = models("llama")
    found = []
    for layout in (PADDED, SHARED):
        with layout.running(model):
            output = pair_forward(model, find_head(model), layout.collate(token_pairs()), asked=ALL)
        found.append(output.logps.facts)
    for name in ("chosen_shared", "rejected_shared", "likeness"):
        one, other = (getattr(facts, name) for facts in found)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_is_computed_that_was_not_asked_for(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.forward.facts.log_square_sums", None)
    model = models("llama")
    output = pair_forward(model, find_head(model), PADDED.collate(token_pairs()))
    assert output.logps.facts is NO_FACTS
