"""A twin has its model's shapes, ties and frozen weights, and none of its data."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModelForCausalLM

from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.planner.holdings import holdings_of
from counterpoint.planner.weightless import fake_mode, weightless_twin
from tests.models_on_the_spot import APART, KINDS

DECODERS = sorted({**KINDS, **APART}.keys() - {"bart"})


@pytest.mark.parametrize("kind", DECODERS)
def test_the_model_of_a_configuration_has_as_many_weights_as_the_real_one(kind, models):
    real = models(kind)
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(real.config, dtype=torch.float32)
    assert all(weight.device.type == "meta" for weight in planned.parameters())
    assert holdings_of(planned).parameters == sum(w.numel() for w in real.parameters())
    shapes = {name: weight.shape for name, weight in real.named_parameters()}
    assert {name: weight.shape for name, weight in planned.named_parameters()} == shapes


def test_a_twin_is_tied_and_frozen_as_its_model_is_and_has_no_data(models):
    model = models("qwen2_tied")
    model.model.layers[0].requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    twin = weightless_twin(model, fake_mode())
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert isinstance(theirs, FakeTensor)
        assert ours.requires_grad == theirs.requires_grad
        assert ours.shape == theirs.shape
        assert torch.equal(ours, before[name])
        assert ours.data_ptr() not in (0, None)


def test_a_twin_of_another_precision_changes_weights_and_not_buffers(models):
    model = models("qwen2")
    twin = weightless_twin(model, fake_mode(), torch.bfloat16)
    assert {weight.dtype for weight in twin.parameters()} == {torch.bfloat16}
    kinds = [buffer.dtype for buffer in model.buffers()]
    assert [buffer.dtype for buffer in twin.buffers()] == kinds


@pytest.mark.parametrize(
    ("optim", "kept"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("sgd", 0),
        ("lion_32bit", 4),
        ("adafactor", 0),
    ],
)
def test_an_optimizer_keeps_so_many_bytes_of_a_float32_weight(optim, kept, models):
    model = models("qwen2")
    weights = sum(weight.numel() for weight in model.parameters())
    assert holdings_of(model, optim=optim).optimizer == kept * weights


def test_the_moments_are_those_that_torch_makes(models):
    for dtype in (torch.float32, torch.bfloat16):
        model = models("qwen2").to(dtype)
        optimizer = torch.optim.AdamW(model.parameters())
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        moments = [
            value
            for state in optimizer.state.values()
            for name, value in state.items()
            if name != "step"
        ]
        held = holdings_of(model)
        assert held.optimizer == sum(moment.nbytes for moment in moments)
        assert held.gradients == sum(weight.grad.nbytes for weight in model.parameters())


def test_frozen_weights_have_neither_gradients_nor_moments(models):
    model = models("qwen2")
    whole = holdings_of(model)
    model.model.embed_tokens.requires_grad_(False)
    part = holdings_of(model, ranks=2)
    frozen = model.model.embed_tokens.weight.nbytes
    assert whole.gradients - part.gradients == frozen
    assert whole.optimizer - part.optimizer == 2 * frozen
    assert part.weights == whole.weights
    assert part.buckets == part.gradients


def test_the_initial_policy_takes_what_it_is_planned_to_take(models):
    """Of the weights that train, a tied one once; and nothing where no drift is bounded."""
    model = models("qwen2_tied")
    model.model.layers[0].requires_grad_(False)
    held = holdings_of(model, drift=True)
    assert held.initial == InitialPolicy(model).size
    assert held.lasting - holdings_of(model).lasting == held.initial > 0
