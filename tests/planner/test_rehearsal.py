"""A rehearsal without data holds what the same work holds with data."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from counterpoint.config import CPOConfig
from counterpoint.planner.plan import Planner
from counterpoint.planner.rehearsal import Way, rehearse
from counterpoint.planner.shapes import Lengths, Shape, batch_of, tokens_of
from counterpoint.planner.weightless import fake_mode, weightless_twin

SHAPES = [Shape(9, 7, 8), Shape(5, 3, 2)]
WAYS = {
    "shared": Way("shared"),
    "padded": Way("padded"),
    "bf16": Way("shared", autocast=torch.bfloat16),
    "checkpointing": Way("shared", checkpointing={}),
    "accumulating": Way("padded", accumulates=True),
    "all": Way("shared", torch.bfloat16, {"use_reentrant": False}, accumulates=True),
}


def faked(model, way, shapes=SHAPES):
    mode = fake_mode()
    return rehearse(weightless_twin(model, mode), mode, shapes, way)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "phi3", "olmo2", "mistral"])
def test_a_rehearsal_holds_what_the_real_work_holds(kind, way, models):
    model = models(kind)
    rehearsed = faked(model, way)
    real = rehearse(model, nullcontext(), SHAPES, way)
    assert rehearsed.tokens == real.tokens
    # a real run that is watched adds gradients up in new memory, an unwatched one in place
    assert rehearsed.peak.total == pytest.approx(real.peak.total, rel=0.02)
    for ours, theirs in zip(rehearsed.stages[:2], real.stages[:2], strict=True):
        assert ours.total == pytest.approx(theirs.total, rel=0.02)


@pytest.mark.parametrize(
    "way",
    [
        Way("encoder-once"),
        Way("encoder-twice"),
        Way("encoder-once", torch.bfloat16, {"use_reentrant": False}, accumulates=True),
    ],
    ids=["once", "twice", "all"],
)
@pytest.mark.parametrize("kind", ["t5", "nllb"])
def test_so_does_a_rehearsal_of_encoder_and_decoder(kind, way, models):
    model = models(kind)
    rehearsed, real = faked(model, way), rehearse(model, nullcontext(), SHAPES, way)
    assert rehearsed.tokens == real.tokens
    assert rehearsed.peak.total == pytest.approx(real.peak.total, rel=0.02)


@pytest.mark.parametrize("kind", ["t5", "nllb"])
def test_a_plan_knows_what_skipping_padding_holds(kind, models, tmp_path):
    """Gathered copies of real tokens: as many as the data's, of lengths that differ widely."""
    pairs = [Shape(6 + n * 7 % 29, 9 + n * 5 % 71, 5 + n * 11 % 67) for n in range(12)]
    model = models(kind)
    args = CPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=12,
        gradient_checkpointing=False,
    )
    planner = Planner(model, args, Lengths(np.asarray(pairs)))
    planned = planner.demand(planner.setting, accumulates=False)
    real = faked(model, Way(planner.setting.layout), pairs)
    assert planned.parts(real.tokens).total == pytest.approx(real.peak.total, rel=0.08)


def test_pairs_of_a_plan_have_prompts_of_their_own():
    """A run may share those that are equal; how many will be no lengths say."""
    same = [Shape(9, 7, 8)] * 3
    assert tokens_of(same, "encoder-once") == 3 * (9 + 2 * 8)
    assert batch_of(same, "encoder-once").inputs["input_ids"].shape == (3, 9)


def test_experts_as_one_product_are_rehearsed_in_float32_as_in_16_bits(models):
    model = models("qwen3_moe")
    model.set_experts_implementation("grouped_mm")
    real = rehearse(model, nullcontext(), SHAPES, Way("shared"))
    assert faked(model, Way("shared")).peak.total == pytest.approx(real.peak.total, rel=0.02)
    half = faked(model.bfloat16(), Way("shared"))
    assert half.peak.total < real.peak.total


def test_a_model_is_as_it_was_after_its_twin_has_been_rehearsed(models):
    model = models("qwen2").eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    faked(model, WAYS["all"])
    assert not model.training
    assert not model.is_gradient_checkpointing
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_checkpointing_holds_fewer_activations_and_accumulating_more_gradients(models):
    model = models("qwen2", num_hidden_layers=6)
    shapes = [Shape(60, 30, 30)] * 4
    plain = faked(model, Way("shared"), shapes)
    again = faked(model, Way("shared", checkpointing={}), shapes)
    added = faked(model, Way("shared", accumulates=True), shapes)
    assert again.peak.total < plain.peak.total
    assert again.stages[0].activations < plain.stages[0].activations / 2
    assert added.peak.total > plain.peak.total
    weights = sum(weight.nbytes for weight in model.parameters())
    assert added.stages[0].gradients == weights
    assert plain.stages[0].gradients == 0


def test_autocast_keeps_a_copy_of_the_matrices_in_half_the_bytes(models):
    model = models("qwen2", hidden_size=128, intermediate_size=256)
    few = [Shape(1, 1, 1)]
    plain, cast = (
        faked(model, replace(WAYS["shared"], autocast=dtype), few)
        for dtype in (None, torch.bfloat16)
    )
    matrices = sum(w.numel() for w in model.model.layers.parameters() if w.dim() == 2)
    more = cast.stages[0].activations - plain.stages[0].activations
    head = model.lm_head.weight.numel()  # cast as well, though it works on no rows
    assert 2 * matrices < more <= 2 * (matrices + head) + 2**14


def test_a_share_of_the_layers_holds_between_none_and_all_of_them(models):
    model = models("qwen2", num_hidden_layers=8)
    shapes = [Shape(60, 30, 30)] * 4
    held = [faked(model, Way("shared"), shapes).peak.total]
    for share in (0.25, 0.5, 0.75, 1.0):
        held.append(faked(model, Way("shared", checkpointing={}, share=share), shapes).peak.total)
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == 5


def test_what_waits_on_the_host_is_not_held_on_the_device(models):
    model = models("qwen2", num_hidden_layers=6, hidden_size=64, intermediate_size=160)
    shapes = [Shape(300, 150, 150)] * 2
    plain = faked(model, Way("shared"), shapes)
    away = faked(model, Way("shared", offload=True), shapes)
    both = faked(model, Way("shared", checkpointing={}, offload=True), shapes)
    assert plain.host == 0
    assert away.peak.total < plain.peak.total / 2
    assert away.host > plain.peak.total - away.peak.total
    assert both.host < away.host / 5
    # with all layers computed again it is their inputs, six of float32
    inputs = 6 * 4 * 64 * both.tokens
    assert inputs <= both.host < 2 * inputs
