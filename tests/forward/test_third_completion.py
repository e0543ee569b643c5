"""A third completion of a prompt is worth what it is worth as the chosen one of a pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.forward.encoded import ENCODER_ONCE, ENCODER_TWICE
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED, Layout
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.routing import find_routers
from counterpoint.forward.trunk import trunk
from counterpoint.models.family import family_of
from counterpoint.records import TokenPair
from tests.float64 import Float64Throughout
from tests.forward.test_encoded import COMPUTED_NARROWLY, pairs_of, several_of_one_source
from tests.forward.test_layouts import EXPERTS
from tests.forward.test_pair_forward import token_pairs
from tests.models_on_the_spot import KINDS, make_model
from tests.reliability.trials import TORTURE
from tests.steps import distance
from tests.translators_on_the_spot import KINDS as TRANSLATORS
from tests.translators_on_the_spot import translator
from tests.vision_on_the_spot import seen_pairs, seer

SEEING = ("llava", "gemma3", "qwen2_5_vl", "mllama")
"""One of each way in which a model is told of pictures: features alone, types of tokens, positions
in three dimensions, layers that look."""


def with_gold(pairs: list[TokenPair]) -> list[TokenPair]:
    """Pairs whose gold completion is the rejected one of the next pair, and something more."""
    others = [*pairs[1:], pairs[0]]
    return [
        replace(pair, gold=[*other.rejected, *pair.chosen[: 1 + number]])
        for number, (pair, other) in enumerate(zip(pairs, others, strict=True))
    ]


def said(model: Any, layout: Layout, pairs: list[TokenPair]) -> tuple[Any, ...]:
    """Log-probabilities of chosen, rejected and gold completions."""
    head = family_of(model.config).find_head(model)
    logps = pair_forward(model, head, layout.collate(pairs)).logps
    return logps.chosen, logps.rejected, logps.gold


def loss_and_gradient(model: Any, sides: tuple[Any, ...]) -> tuple[float, dict[str, Any]]:
    model.zero_grad(set_to_none=True)
    weights = torch.arange(1, len(sides[0]) + 1)
    loss = (weights * (sides[0] - 0.3 * sides[1] + 0.7 * sides[2])).sum()
    loss.backward()
    grads = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def check(model: Any, pairs: list[TokenPair], truth: Layout, layouts: Any, limit: float) -> None:
    """The truth has two completions a pair, and the third as the chosen one of other pairs."""
    two = [replace(pair, gold=()) for pair in pairs]
    third = [replace(pair, chosen=pair.gold, gold=()) for pair in pairs]
    with truth.running(model):
        sides = said(model, truth, two)[:2] + said(model, truth, third)[:1]
        value, gradient = loss_and_gradient(model, sides)
    for layout in layouts:
        with layout.running(model):
            found = said(model, layout, pairs)
            for one, other in zip(sides, found, strict=True):
                assert torch.allclose(one, other, rtol=limit, atol=0)
            value_found, gradient_found = loss_and_gradient(model, found)
        assert value_found == pytest.approx(value, rel=limit)
        assert distance(gradient, gradient_found) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_three_completions_share_a_prompt(kind: str) -> None:
    with Float64Throughout():
        model = make_model(kind).double()
        check(model, with_gold(token_pairs(4)), PADDED, (PADDED, SHARED), 1e-12)


def test_a_third_completion_without_a_prompt_predicts_from_itself_alone() -> None:
    with Float64Throughout():
        model = make_model("phi").double()
        pair = TokenPair([], [5, 6, 7], [8, 9], 0, gold=[4, 3, 9, 9], gold_given=(2, 3))
        alone = replace(pair, chosen=pair.gold, chosen_given=pair.gold_given, gold=())
        for layout in (PADDED, SHARED):
            with layout.running(model):
                counts = layout.collate([pair]).gold_tokens
                found, truth = said(model, layout, [pair])[2], said(model, layout, [alone])[0]
            assert counts is not None
            assert counts.tolist() == [2]
            assert torch.allclose(found, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_prompt_of_three_is_balanced_as_three(kind: str) -> None:
    with Float64Throughout():
        model, pairs = make_model(kind).double(), with_gold(token_pairs(3))
        head, routers = find_head(model), find_routers(model)
        found = []
        for layout in (PADDED, SHARED):
            with layout.running(model):
                found.append(trunk(model, head, layout.collate(pairs), routers)[1])
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tokens.item() == found[1].tokens.item()
    assert found[0].sent.tolist() == found[1].sent.tolist()


@pytest.mark.parametrize("kind", TRANSLATORS if TORTURE else ("t5", "nllb", "mbart", "marian"))
def test_a_third_completion_hears_the_same_source(kind: str) -> None:
    made = translator(kind, torch.float64)
    pairs = with_gold(several_of_one_source(pairs_of(kind, made)))
    limit = 1e-6 if kind in COMPUTED_NARROWLY else 1e-12
    check(made[0], pairs, ENCODER_TWICE, (ENCODER_TWICE, ENCODER_ONCE), limit)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", SEEING)
def test_a_third_completion_sees_the_same_pictures(kind: str) -> None:
    with Float64Throughout():
        made = seer(kind, torch.float64)
        model, pairs = made[0], with_gold(seen_pairs(made))
        layouts = [one for one in (PICTURES_TWICE, PADDED, SHARED) if one.why_not(model) is None]
        check(model, pairs, PICTURES_TWICE, layouts, 1e-12)
