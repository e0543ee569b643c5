"""Pairs of one prompt: computed once in a shared row, and worth what they are worth apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch

from counterpoint.forward.head import find_head
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.routing import find_routers
from counterpoint.forward.trunk import trunk
from counterpoint.models.family import family_of
from counterpoint.pair_facts import FactsAsked
from counterpoint.pair_segments import PairSegments
from counterpoint.records import TokenPair
from tests.float64 import Float64Throughout
from tests.forward.test_layouts import EXPERTS
from tests.forward.test_pair_forward import token_pairs
from tests.models_on_the_spot import KINDS, make_model
from tests.steps import distance
from tests.vision_on_the_spot import seen_pairs, seer

SEEING = ("llava", "gemma3", "qwen2_5_vl", "mllama")
"""One of each way in which a model is told of pictures."""


def lists(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """Lists of three and of two between pairs: a rejected one twice, a chosen one of its own."""
    first, second, *others = pairs
    third, fourth = others[0], others[-1]
    listed = [
        first,
        replace(first, rejected=third.rejected, row=10),
        replace(first, rejected=fourth.chosen, rejected_given=(0, 1), row=11),
        second,
        replace(third, row=12),
        # what one pair prefers another rejects
        replace(third, chosen=first.chosen, rejected=third.chosen, row=13),
        replace(third, row=14),
    ]
    return [*listed, *others]


def check(model: torch.nn.Module, pairs: Sequence[TokenPair], truth, layouts, limit: float) -> None:
    head = family_of(model.config).find_head(model)
    found = []
    for layout in (truth, *layouts):
        model.zero_grad(set_to_none=True)
        with layout.running(model):
            logps = pair_forward(model, head, layout.collate(pairs)).logps
            times = torch.arange(1, len(pairs) + 1)
            (times * (logps.chosen - 0.3 * logps.rejected)).sum().backward()
        gradient = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
        found.append((logps, gradient))
    (logps, gradient), *others = found
    for other, its in others:
        assert torch.allclose(logps.chosen, other.chosen, rtol=limit, atol=0)
        assert torch.allclose(logps.rejected, other.rejected, rtol=limit, atol=0)
        assert distance(gradient, its) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_one_prompt_are_worth_what_they_are_worth_apart(kind: str) -> None:
    with Float64Throughout():
        check(make_model(kind).double(), lists(token_pairs(5)), PADDED, [SHARED], 1e-12)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", SEEING)
def test_pairs_of_one_picture_are_worth_what_they_are_worth_apart(kind: str) -> None:
    with Float64Throughout():
        made = seer(kind, torch.float64)
        layouts = [one for one in (PADDED, SHARED) if one.why_not(made[0]) is None]
        check(made[0], lists(seen_pairs(made)), PICTURES_TWICE, layouts, 1e-12)


def test_a_prompt_and_what_is_chosen_stand_in_a_row_once() -> None:
    prompt, chosen = [5, 6, 7], [8, 9]
    listed = [TokenPair(prompt, chosen, [4] * n, n) for n in (1, 2, 3)]
    batch = SHARED.collate([*listed, TokenPair([5, 6], chosen, [4], 4)])
    assert batch.segments == (PairSegments(0, 0, 3, (2, 1, 2, 3)), PairSegments(0, 11, 2, (2, 1)))
    assert batch.cost == batch.input_ids.numel() == 16
    assert len(batch) == 4


def test_what_is_no_common_prompt_is_not_shared() -> None:
    alike = TokenPair([5], [8, 9], [8, 9], 0)
    nothing = [TokenPair([], [8, 9, n], [4, 4], n) for n in (1, 1)]
    apart = [alike, TokenPair([6], [8, 9], [4], 1), replace(alike, row=2)]
    assert [s.completions for s in SHARED.collate([alike]).segments] == [(2, 2)]
    assert len(SHARED.collate(nothing).segments) == len(nothing)
    assert len(SHARED.collate(apart).segments) == len(apart)


def test_a_prompt_about_another_picture_is_another_prompt() -> None:
    made = seer("llava", torch.float32)
    first = seen_pairs(made)[0]
    picture = first.seen[0]
    other = replace(first, seen=[replace(picture, digest="another"), *first.seen[1:]])
    assert len(SHARED.collate([first, replace(first, row=9)]).segments) == 1
    assert len(SHARED.collate([first, other]).segments) == 2
    assert SHARED.common(first) != SHARED.common(other)


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_count_a_prompt_once_a_completion_that_sees_it(kind: str) -> None:
    with Float64Throughout():
        model, pairs = make_model(kind).double(), lists(token_pairs(4))
        pairs[1] = replace(pairs[1], row=-1, weight=0.0)  # a filler
        head, routers = find_head(model), find_routers(model)
        found = []
        for layout in (PADDED, SHARED):
            with layout.running(model):
                found.append(trunk(model, head, layout.collate(pairs), routers)[1])
    one, other = found
    assert one is not None
    assert other is not None
    assert one.tokens.item() == other.tokens.item()
    assert one.sent.tolist() == other.sent.tolist()


def test_every_place_of_a_row_of_lists_knows_a_pair_that_has_it() -> None:
    pairs = lists(token_pairs(4))
    batch = SHARED.collate(pairs)
    met = set()
    for position, token in enumerate(batch.input_ids[0].tolist()):
        number, part, place = SHARED.part_at(batch, 0, position)
        assert getattr(pairs[number], part)[place] == token
        met.add((number, part, place))
    assert len(met) == batch.input_ids.numel()


def test_the_proof_of_a_run_with_lists_has_pairs_of_one_prompt() -> None:
    few, longest = token_pairs(2), max(map(len, token_pairs(1)[0].completions))
    assert SHARED.to_prove(few, token_pairs(5)) == few
    for some in (few, few[:1]):
        proved = SHARED.to_prove(some, [*token_pairs(5), replace(token_pairs(5)[3], row=9)])
        assert len(proved) == len(some) + 1
        assert len(SHARED.collate(proved).segments) == len(some)
        assert all(len(one) <= longest for one in proved[1].completions)


def test_whatever_else_is_asked_of_a_pair_is_what_it_is_apart() -> None:
    with Float64Throughout():
        model, pairs = make_model("qwen2").double(), lists(token_pairs(5))
        head, initial = find_head(model), InitialPolicy(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * torch.randn_like(weight)
        found = []
        for layout in (PADDED, SHARED):
            asked = FactsAsked(shared=True, likeness=True)
            with layout.running(model):
                batch = layout.collate(pairs)
                output = pair_forward(model, head, batch, initial=initial, asked=asked)
            facts = output.logps.facts
            numbers = [*(getattr(facts, one.name) for one in fields(facts))]
            found.append([*numbers, output.logps.drift, output.logit_sums])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_head_is_asked_once_for_what_pairs_have_in_common(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, pairs = make_model("qwen2"), lists(token_pairs(4))
    head, asked = find_head(model), []

    def counted(self, rows, ids):
        asked.append(len(rows))
        return rows.sum(-1), rows.sum(-1)

    monkeypatch.setattr(type(head), "token_logps", counted)
    for layout in (PADDED, SHARED):
        with layout.running(model):
            pair_forward(model, head, layout.collate(pairs))
    batch = SHARED.collate(pairs)
    padded, shared = asked
    assert padded == len(batch.target_ids)
    places = set(zip(batch.target_source.tolist(), batch.target_ids.tolist(), strict=True))
    assert shared == len(places) < padded
