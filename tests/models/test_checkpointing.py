"""Laws of checkpointing by share: so many layers, evenly, and bit for bit the same gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from counterpoint import ConfigError
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.token_scores import token_scores
from counterpoint.models.checkpointing import enable_checkpointing, keep_share, spread_evenly
from counterpoint.models.family import family_of
from counterpoint.planner.shapes import Shape, batch_of
from tests.models_on_the_spot import KINDS

SHARES = (1.0, 0.5, 0.25)


@given(st.integers(1, 200), st.floats(0.001, 1.0))
def test_so_many_layers_as_the_share_comes_to_are_spread_evenly(count: int, share: float):
    chosen = spread_evenly(count, share)
    assert len(chosen) == count
    assert sum(chosen) == max(1, round(share * count))
    for start in range(0, count, 7):  # no stretch has more or less than its part, by one layer
        for end in range(start + 1, count + 1, 5):
            part = sum(chosen) * (end - start) / count
            assert abs(sum(chosen[start:end]) - part) <= 1


def test_a_half_is_every_second_layer_and_a_third_every_third():
    assert spread_evenly(6, 0.5) == [False, True] * 3
    assert spread_evenly(6, 1 / 3) == [False, False, True] * 2
    assert spread_evenly(4, 1.0) == [True] * 4
    assert spread_evenly(4, 0.01) == [False, False, False, True]


def gradients(model, *, layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of one micro-batch's log-probabilities, with whatever dropout the model has."""
    torch.manual_seed(seed)
    batch = batch_of([Shape(7, 5, 4), Shape(3, 6, 5)], layout)
    model.train()
    model.zero_grad(set_to_none=True)
    with LAYOUTS[layout].running(model):
        scores = token_scores(model, family_of(model.config).find_head(model), batch)
        scores.logps.sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe", "gemma2", "gpt2"])
def test_a_share_of_the_layers_gives_the_same_gradient_bit_for_bit(models, kind: str, layout: str):
    model = models(kind, num_hidden_layers=4)
    plain = gradients(model, layout=layout)
    for share in SHARES:
        enable_checkpointing(model, share=share)
        again = gradients(model, layout=layout)
        assert plain.keys() == again.keys()
        assert all(torch.equal(plain[name], again[name]) for name in plain), share


@pytest.mark.parametrize("share", SHARES)
def test_dropout_is_drawn_again_as_it_was(models, share: float):
    """Layers that are computed again and layers that are not draw from one generator."""
    model = models("gpt2", num_hidden_layers=4, resid_pdrop=0.3, attn_pdrop=0.2, embd_pdrop=0.1)
    plain, other = (gradients(model, layout="padded", seed=seed) for seed in (5, 6))
    enable_checkpointing(model, share=share)
    again = gradients(model, layout="padded", seed=5)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


def test_an_adapter_gets_the_same_gradient(models):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = peft.get_peft_model(models("qwen2", num_hidden_layers=4), config)
    nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    plain = gradients(model, layout="shared")
    model.enable_input_require_grads()
    for share in SHARES:
        enable_checkpointing(model, share=share)
        again = gradients(model, layout="shared")
        assert plain.keys() == again.keys()
        assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_model_can_choose_its_layers(models, kind: str):
    model = models(kind)
    enable_checkpointing(model, share=0.5)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert [m.gradient_checkpointing for m in layers] == spread_evenly(len(layers), 0.5)


def test_a_model_that_cannot_choose_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"^CP104 checkpointing_share=0\.5 .* Linear"):
        keep_share(nn.Linear(2, 2), 0.5)
    keep_share(nn.Linear(2, 2), 1.0)
