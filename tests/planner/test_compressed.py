"""A plan knows quantised weights: before they are read as after, and what their products cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterpoint import CPOConfig
from counterpoint.models.loading import load_config, load_model, random_model
from counterpoint.models.weights import WeightsPolicy
from counterpoint.planner.compressed import compress
from counterpoint.planner.fitting import surely_fits
from counterpoint.planner.holdings import Holdings, holdings_of
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths
from counterpoint.planner.weightless import adapted, fake_mode, weightless_twin
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")

SHAPE = {"hidden_size": 128, "intermediate_size": 320, "vocab_size": 64, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """A model that is wide against its vocabulary, so that layers matter and not the embedding."""
    folder = tmp_path_factory.mktemp("model")
    make_model("llama", **SHAPE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> str:
    """One with layers that are never quantised."""
    folder = tmp_path_factory.mktemp("translator")
    make_model("t5", d_model=128, d_ff=320, num_layers=1, vocab_size=64).save_pretrained(folder)
    return str(folder)


def lora(task: str = "CAUSAL_LM"):
    return peft.LoraConfig(r=4, target_modules="all-linear", task_type=task)


def both(source: str, args: CPOConfig):
    """The model as it is described, and as it is loaded, with its adapter."""
    policy = WeightsPolicy.of(args, adapter=True)
    with torch.device("meta"):
        described = random_model(source, args, load_config(source, args), policy)
    if policy.quantization is not None:
        compress(described, policy.quantization)
    return described, peft.get_peft_model(load_model(source, args, policy), lora())


def held(source: str, folder: Path, **options) -> tuple[Holdings, Holdings]:
    """What is held of either."""
    args = CPOConfig(output_dir=str(folder), use_cpu=True, **options)
    described, loaded = both(source, args)
    return holdings_of(weightless_twin(adapted(described, lora()), fake_mode())), holdings_of(
        weightless_twin(loaded, fake_mode())
    )


@pytest.mark.parametrize("option", ["load_in_4bit", "load_in_8bit"])
def test_what_is_held_is_the_same_before_the_weights_are_read_and_after(source, tmp_path, option):
    before, after = held(source, tmp_path, **{option: True})
    assert before == after
    plain = sum(weight.numel() for weight in make_model("llama", **SHAPE).parameters())
    assert after.parameters - after.trained == plain


@pytest.mark.parametrize("option", ["load_in_4bit", "load_in_8bit"])
def test_layers_that_stay_wide_are_counted_so(translator, tmp_path, option):
    before, after = held(translator, tmp_path, **{option: True})
    assert before == after


def test_a_micro_batch_over_quantised_weights_is_rehearsed(source, tmp_path):
    args = CPOConfig(
        output_dir=str(tmp_path), use_cpu=True, load_in_4bit=True, gradient_checkpointing=False
    )
    described, loaded = both(source, args)
    lengths = Lengths.of(random_pairs(8))
    before = Planner(described, args, lengths, adapter=lora())
    after = Planner(loaded, args, lengths)
    assert before.estimate(8, 2**40) == after.estimate(8, 2**40)
    assert surely_fits(loaded, 100, 20, 2**30)


def test_fewer_bits_take_fewer_bytes(source, tmp_path):
    plain, eight, four = (
        held(source, tmp_path, **options)[0].weights
        for options in ({}, {"load_in_8bit": True}, {"load_in_4bit": True})
    )
    layers = 2 * 128 * 32 + 2 * 128 * 16 + 3 * 128 * 320
    # four bytes a weight become one, and four for each row
    assert plain - eight == 3 * layers - 4 * (32 + 16 + 16 + 128 + 320 + 320 + 128)
    assert eight - four > 0.4 * layers
