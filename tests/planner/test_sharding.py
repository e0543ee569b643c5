"""Laws of models in shards: parts add up, a gather costs what it holds, and waiting has a place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint import CPOConfig
from counterpoint.planner.fitting import plan_where_tight
from counterpoint.planner.holdings import holdings_of
from counterpoint.planner.plan import Planner
from counterpoint.planner.rehearsal import Way, Work, rehearse
from counterpoint.planner.scaling import Cluster, scaling_of, traffic_of
from counterpoint.planner.shapes import Lengths, Shape
from counterpoint.planner.sharding import entries_held, groups_of
from counterpoint.planner.table import WIDTH, as_table
from counterpoint.planner.weightless import fake_mode, weightless_twin

LENGTHS = Lengths(np.asarray([Shape(40 + n % 7, 20 + n % 5, 18 + n % 3) for n in range(32)]))


def planner_of(model, folder: Path, *, ranks: int, shards: int, **options) -> Planner:
    keywords = {"use_cpu": True, "bf16": False, **options}
    args = CPOConfig(output_dir=str(folder / "run"), **keywords)
    return Planner(model, args, LENGTHS, ranks=ranks, shards=shards)


@pytest.mark.parametrize(
    ("shape", "shards", "held"),
    [
        ((10, 3), 1, 30),
        ((10, 3), 2, 15),
        ((10, 3), 4, 9),  # rows are dealt whole: three, three, three and one
        ((2, 3), 8, 3),
        ((7,), 2, 4),
        ((), 4, 1),
        ((0, 3), 2, 0),
    ],
)
def test_a_rank_holds_its_rows_of_a_weight(shape: tuple[int, ...], shards: int, held: int):
    weight = torch.empty(shape)
    assert entries_held(weight, shards) == held
    if shards > 1 and weight.dim() and weight.numel():
        assert held == torch.chunk(weight, shards)[0].numel()  # as fully_shard cuts it


@pytest.mark.parametrize("kind", ["llama", "qwen2_tied", "qwen3_moe"])
def test_groups_have_every_weight_once(models, kind: str):
    model = models(kind, num_hidden_layers=3)
    groups = groups_of(model)
    size = sum(weight.nbytes for weight in model.parameters())
    assert groups.all.weights == groups.all.gradients == size
    assert len(groups.layers) == 3
    assert groups.tied == (kind == "qwen2_tied")
    assert (groups.front.weights == 0) == groups.tied
    half = groups_of(model, torch.bfloat16)
    assert 2 * half.all.weights == size
    assert half.all.reduced == size  # sums over ranks are in float32
    for weight in model.parameters():
        weight.requires_grad_(False)
    assert groups_of(model).all.gradients == groups_of(model).all.reduced == 0


def test_what_is_held_falls_with_the_ranks_and_what_is_gathered_does_not(models, tmp_path: Path):
    model = models("llama", num_hidden_layers=4, hidden_size=64, intermediate_size=128)
    whole = holdings_of(model)
    found = {}
    planner = planner_of(model, tmp_path, ranks=2, shards=2)
    for ranks in (2, 4, 8):
        one = planner.among(ranks, ranks)
        demand = one.demand(one.setting)
        held = demand.holdings
        assert held.weights >= whole.weights / ranks
        assert held.optimizer == pytest.approx(whole.optimizer / ranks, rel=0.05)
        assert held.buckets == 0
        found[ranks] = demand
        estimate = one.asked(2**40)
        assert estimate.gathered > 0
        assert estimate.gradients == held.gradients
    at = [found[ranks].parts(500).gathered for ranks in (2, 4, 8)]
    assert at[0] == at[1] == at[2]
    peaks = [found[ranks].peak(500) for ranks in (2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)
    # another number of ranks is not rehearsed again, and says what one made for it says
    fresh = planner_of(model, tmp_path, ranks=8, shards=8)
    assert fresh.demand(fresh.setting).peak(500) == peaks[2]


def test_shards_that_wait_on_the_host_leave_the_device_what_is_gathered(models, tmp_path: Path):
    model = models("llama", num_hidden_layers=2)
    args = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path), "fsdp": True}
    both = []
    for option in (False, True):
        config = CPOConfig(**args, optimizer_offload=option)
        both.append(Planner(model, config, LENGTHS, ranks=2, shards=2, device="cuda"))
    here, away = (one.demand(one.setting) for one in both)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    held = here.holdings
    assert away.holdings.least == buffers
    assert away.holdings.host == held.least - buffers
    assert away.host(500) == here.host(500) + away.holdings.host
    assert away.parts(500).gathered == here.parts(500).gathered
    assert here.peak(500) - away.peak(500) == away.holdings.host
    asked = both[1].asked(2**40)
    assert (asked.optimizer, asked.gradients, asked.host >= away.holdings.host) == (0, 0, True)
    # where the device holds too little for its part, it is among what helps
    usable = here.holdings.least
    lines = [remedy.line for remedy in both[0].remedies(usable)]
    assert "optimizer_offload: true" in lines
    assert "optimizer_offload: true" not in [one.line for one in both[1].remedies(usable)]


def test_operations_are_those_of_the_matrices(models):
    """Two for each number of a matrix and token: forward, and twice that backward."""
    model = models("llama", num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    shapes = [Shape(9, 7, 6)] * 2
    matrices = sum(
        module.weight.numel()
        for module in model.model.layers.modules()
        if isinstance(module, nn.Linear)
    )
    found = {}
    for again in (None, {}):
        mode = fake_mode()
        twin = weightless_twin(model, mode)
        found[again is not None] = rehearse(twin, mode, shapes, Way("padded", checkpointing=again))
    plain, recomputed = found[False], found[True]
    trunk, forward, every = plain.operations
    width, vocab = model.config.hidden_size, model.config.vocab_size
    attention = trunk - 2 * matrices * plain.tokens
    assert 0 <= attention < trunk / 3
    head = 2 * width * vocab * 2 * (7 + 6)
    assert forward - trunk == head
    # the head's tiles are computed again in its backward; attention's backward has its own price
    assert every >= 3 * forward
    assert every <= 3 * forward + head + attention
    # a layer that is computed again ends before its last product, of which nothing is needed
    last = 2 * 2 * 64 * 128 * plain.tokens
    assert recomputed.operations[2] - every == trunk - last
    assert recomputed.work(whole=True).useful == plain.work(whole=True).useful
    assert plain.work(whole=True).useful == 3 * forward / plain.tokens


def test_traffic_is_two_gathers_and_a_sum_of_what_others_hold(models):
    groups = groups_of(models("llama", num_hidden_layers=3))
    every, tail = groups.all, groups.tail
    flat = traffic_of(groups, Cluster(8, nodes=2))
    assert flat.gathered == round(7 / 8 * (2 * every.weights - tail.weights))
    assert flat.scattered == round(7 / 8 * every.reduced)
    assert flat.copied == 0
    both = traffic_of(groups, Cluster(8, nodes=2, replicas=2))
    assert both.scattered == round(3 / 4 * every.reduced)
    assert both.copied == round(every.reduced / 4)  # there and back, of a quarter
    alone = traffic_of(groups, Cluster(1))
    assert alone.total == 0


def test_replicas_keep_gathers_within_a_node():
    assert Cluster(16, nodes=2).sharing == Cluster(16).inter
    assert Cluster(16, nodes=2, replicas=2).sharing == Cluster(16).intra
    assert Cluster(16, nodes=2, replicas=2).copying == Cluster(16).inter
    assert Cluster(8).sharing == Cluster(8).intra
    # three of four ranks a node: 0 1 2, 3 | 4 5, 6 7 | 8, 9 10 11
    assert Cluster(12, nodes=3, replicas=4).sharing == Cluster(12).inter
    assert Cluster(12, nodes=3, replicas=6).sharing == Cluster(12).intra


def test_at_the_break_even_computing_takes_as_long_as_exchanging(models):
    groups, work = groups_of(models("llama", num_hidden_layers=4)), Work(4e6, 3e6)
    cluster = Cluster(16, nodes=2)
    even = scaling_of(groups, work, cluster, {}).break_even
    sizes = {"half": even // 2, "even": even, "much": 100 * even}
    found = scaling_of(groups, work, cluster, sizes)
    half, same, much = found.paces[:3]
    assert same.computing == pytest.approx(same.exchanging, rel=1e-2)
    assert half.seconds == pytest.approx(same.seconds, rel=1e-2)  # they wait for the network
    assert half.mfu == pytest.approx(same.mfu / 2, rel=2e-2)
    assert half.mfu < same.mfu < much.mfu < cluster.efficiency * work.useful / work.done
    slower = scaling_of(groups, work, replace(cluster, inter=cluster.inter / 2), sizes)
    assert slower.break_even == pytest.approx(2 * even, rel=1e-2)


def test_a_plan_in_shards_says_its_pace_in_eighty_columns(models, tmp_path: Path):
    planner = planner_of(models("llama"), tmp_path, ranks=16, shards=8)
    cluster = Cluster(16, nodes=2, replicas=2)
    plan = planner.plan(2**34, 2**33, cluster=cluster)
    text = as_table(plan)
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in ("2 copies", "8 of 16 ranks", "break-even", "predicted, not measured"):
        assert part in " ".join(text.split())
    described = plan.as_dict()["scaling"]
    assert described["cluster"]["ranks"] == 16
    assert described["paces"][0]["what"] == "as configured"
    assert "computation against exchange" in plan._repr_html_()


def test_a_run_of_several_copies_is_planned_with_the_ranks_that_share_one(
    models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget of ``train`` and what the doctor says; ``plan`` is told the ranks."""
    monkeypatch.setattr(CPOConfig, "world_size", 8)
    args = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path), "fsdp": True}
    found = {}
    for copies in (None, 2, 4):
        config = CPOConfig(**args)
        config.fsdp_replicas = copies  # asked for where ranks are there
        planner = plan_where_tight(models("llama"), config, LENGTHS, pairs=1, left=0)
        assert planner is not None
        found[copies] = planner.shards
    assert found == {None: 8, 2: 4, 4: 2}
