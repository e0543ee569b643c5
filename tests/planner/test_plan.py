"""Laws of plans: more costs more, less costs less, and what is said to fit does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint import CPOConfig, ModelError
from counterpoint.planner.fitting import surely_fits
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths, Shape, batch_of, tokens_of
from counterpoint.planner.table import WIDTH, as_table
from tests.models_on_the_spot import APART, KINDS
from tests.reliability.trials import TORTURE

MIB = 2**20
PAIRS = [Shape(40 + n % 7, 20 + n % 5, 18 + n % 3) for n in range(64)]
LENGTHS = Lengths(np.asarray(PAIRS))


def planner_of(model, folder: Path, *, lengths: Lengths = LENGTHS, ranks: int = 1, **options):
    keywords = {"gradient_checkpointing": False, "use_cpu": True, "bf16": False, **options}
    args = CPOConfig(output_dir=str(folder / "run"), **keywords)
    return Planner(model, args, lengths, ranks=ranks)


def test_more_tokens_need_more_memory(models, tmp_path: Path):
    demand = planner_of(models("qwen2"), tmp_path).demand
    for accumulates in (False, True):
        found = demand(planner_of(models("qwen2"), tmp_path).setting, accumulates=accumulates)
        peaks = [found.peak(tokens) for tokens in (1, 50, 100, 200, 400, 1000, 10_000)]
        assert peaks == sorted(peaks)
        assert peaks[-1] > 5 * peaks[2]
        for tokens in (50, 1000):
            assert found.holdings.lasting + found.parts(tokens).total == found.peak(tokens)


@settings(max_examples=30, deadline=None)
@given(memory=st.integers(2**20, 2**32))
def test_the_largest_budget_fits_and_one_token_more_does_not(memory):
    demand = shared_demand()
    budget = demand.budget(memory)
    if budget:
        assert demand.peak(budget) <= memory
    assert demand.peak(budget + 1) > memory


_DEMANDS: list = []


def shared_demand():
    if not _DEMANDS:
        from tests.models_on_the_spot import make_model

        planner = planner_of(make_model("qwen2"), Path("unused"))
        _DEMANDS.append(planner.demand(planner.setting))
    return _DEMANDS[0]


def test_lora_checkpointing_and_sharing_each_need_less(models, tmp_path: Path):
    peft = pytest.importorskip("peft")
    model = models("qwen2", hidden_size=64, intermediate_size=160, num_hidden_layers=4)
    planner = planner_of(model, tmp_path)
    plain = planner.setting
    tokens = 2000
    peak = planner.demand(plain).peak(tokens)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    lighter = {
        "LoRA": replace(plain, adapter=adapter),
        "checkpointing": replace(plain, checkpointing={}),
        "16 bits": replace(plain, autocast=torch.bfloat16),
    }
    for name, setting in lighter.items():
        assert planner.demand(setting).peak(tokens) < peak, name
    held = planner.demand(lighter["LoRA"]).holdings
    adapted = peft.get_peft_model(models("qwen2", **_same(model)), adapter)
    assert held.parameters == sum(weight.numel() for weight in adapted.parameters())
    assert held.trained == sum(w.numel() for w in adapted.parameters() if w.requires_grad)
    # pair for pair, the padded layout has more tokens to hold
    alone = planner.lengths.heaviest(8, "shared"), planner.lengths.heaviest(8, "padded")
    padded = replace(plain, layout="padded")
    assert planner.demand(padded).peak(alone[1]) > planner.demand(plain).peak(alone[0])


def _same(model) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    return {name: getattr(model.config, name) for name in names}


@pytest.mark.parametrize(("pairs", "ranks"), [(64, 1), (48, 4), (7, 1), (16, 8)])
def test_every_split_makes_the_wanted_step_and_none_is_missing(
    pairs, ranks, models, tmp_path: Path
):
    planner = planner_of(models("qwen2"), tmp_path, ranks=ranks)
    found = list(planner.splits(pairs, 2**40))
    assert all(one.per_device * one.accumulation * one.ranks == pairs for one in found)
    divisors = [n for n in range(1, pairs // ranks + 1) if pairs // ranks % n == 0]
    assert sorted(one.per_device for one in found) == divisors
    assert [one.per_device for one in found] == sorted(divisors, reverse=True)
    tokens = [one.tokens for one in found]
    assert tokens == sorted(tokens, reverse=True)
    assert all(one.fits == (one.peak <= 2**40) for one in found)


def test_pairs_that_ranks_cannot_share_have_no_split(models, tmp_path: Path):
    assert list(planner_of(models("qwen2"), tmp_path, ranks=3).splits(64, 2**40)) == []


def test_what_fits_needs_no_remedy_and_what_can_be_cut_needs_no_other(models, tmp_path: Path):
    planner = planner_of(
        models("qwen2"), tmp_path, per_device_train_batch_size=32, gradient_accumulation_steps=2
    )
    asked, alone = planner.asked(2**40), planner.estimate(1, 2**40)
    assert list(planner.remedies(asked.peak)) == []
    between = (asked.peak + alone.peak) // 2
    (remedy,) = planner.remedies(between)
    budget = planner.budget(between)
    assert remedy.line == f"max_micro_batch_tokens: {budget}"
    assert alone.tokens <= budget < asked.tokens
    cut = planner_of(
        models("qwen2"),
        tmp_path,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        max_micro_batch_tokens=budget,
    )
    assert cut.asked(between).fits


def test_remedies_are_cumulative_end_where_it_fits_and_each_lowers_the_peak(models, tmp_path: Path):
    model = models("qwen2", hidden_size=64, intermediate_size=160, num_hidden_layers=6)
    planner = planner_of(model, tmp_path, layout="padded")
    alone = planner.estimate(1, 2**40).peak
    found = list(planner.remedies(alone // 3))
    peaks = [alone, *(remedy.peak for remedy in found)]
    assert peaks == sorted(peaks, reverse=True)
    assert found[0].line == "layout: shared"
    assert "gradient_checkpointing: true" in [remedy.line for remedy in found]
    assert [remedy.fits for remedy in found[:-1]] == [False] * (len(found) - 1)


def test_a_run_whose_weights_alone_are_too_much_has_no_budget(models, tmp_path: Path):
    planner = planner_of(models("qwen2"), tmp_path)
    weights = planner.demand(planner.setting).holdings.weights
    assert planner.budget(weights) == 0
    assert planner.demand(planner.setting).budget(weights) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_planned_in_the_layout_that_it_trains_in(
    kind, models, tmp_path: Path
):
    planner = planner_of(models(kind), tmp_path)
    assert (planner.setting.layout, planner.reason) == ("shared", "")
    assert planner.estimate(2, 0).activations > 0


@pytest.mark.parametrize("kind", sorted(APART.keys() - {"bart"}) if TORTURE else ["qwen3_next"])
def test_kinds_that_keep_their_prompts_apart_can_be_planned_too(kind, models, tmp_path: Path):
    planner = planner_of(models(kind), tmp_path)
    assert planner.estimate(2, 0).peak > planner.demand(planner.setting).holdings.lasting


def test_a_model_that_asks_for_values_is_refused_by_name(models, tmp_path: Path):
    model = models("qwen2")
    model.model.norm.register_forward_hook(
        lambda module, args, result: result * result.max().item()
    )
    with pytest.raises(ModelError, match="CP306 Qwen2ForCausalLM does not run without data"):
        planner_of(model, tmp_path, layout="padded").asked(0)


@pytest.mark.parametrize("kind", KINDS if TORTURE else ("qwen2_tied", "gemma3", "qwen3_moe"))
def test_what_surely_fits_is_predicted_to_fit_in_half(kind, models, tmp_path: Path):
    model = models(kind)
    tokens = LENGTHS.heaviest(8, "padded")
    longest = sum(LENGTHS.longest("padded"))
    enough = next(
        2**power for power in range(20, 50) if surely_fits(model, tokens, longest, 2**power)
    )
    assert not surely_fits(model, tokens, longest, enough // 2)
    planner = planner_of(model, tmp_path, layout="padded")
    held = planner.demand(planner.setting)
    assert held.peak(tokens) - held.holdings.weights <= enough / 2


def test_a_micro_batch_of_shapes_has_the_tokens_that_lengths_say():
    for layout in ("shared", "padded"):
        heaviest = sorted(PAIRS, key=lambda s: s.prompt + max(s.chosen, s.rejected), reverse=True)
        assert batch_of(heaviest[:4], layout).input_ids.numel() == tokens_of(heaviest[:4], layout)
        assert LENGTHS.heaviest(1, layout) == max(tokens_of([s], layout) for s in PAIRS)
        assert LENGTHS.heaviest(100, layout) == tokens_of(PAIRS, layout)


def test_lengths_are_cut_as_the_longest_pairs_are():
    cut = Lengths(np.asarray([[50, 10, 60], [3, 4, 5], [99, 1, 1]])).within(64, 12)
    assert cut.parts.tolist() == [[50, 10, 12], [3, 4, 5], [63, 1, 1]]


def test_a_table_is_no_wider_than_a_terminal_and_tells_the_verdict(models, tmp_path: Path):
    planner = planner_of(models("qwen2"), tmp_path, layout="padded", ranks=2)
    for memory, verdict in ((2**40, "it fits"), (MIB, "not even one pair fits")):
        text = as_table(planner.plan(memory, memory))
        assert max(map(len, text.splitlines())) <= WIDTH
        assert verdict in text
        assert ("TOO MUCH" in text) == (memory < 2**40)
