"""Pairs a step are the constant of an experiment: what a run takes over on other ranks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from counterpoint import ConfigError, CPOConfig, CPOTrainer, SetupError
from counterpoint.checkpoint.experiment import PAIRS, remedy
from counterpoint.checkpoint.fingerprint import model_facts
from counterpoint.checkpoint.manifest import File, Manifest
from counterpoint.checkpoint.randomness import new_random_state, random_state
from counterpoint.checkpoint.rank_states import check_merge, check_ranks
from counterpoint.checkpoint.segments import (
    Segment,
    as_state,
    resumed_segments,
    segment_of,
    segments_then,
)
from counterpoint.doctor.of_batch import of_batch
from counterpoint.metrics import MetricSums
from counterpoint.step.share import TokenBudget
from counterpoint.trainer.recording import announce


def on(ranks: int, **options: Any) -> CPOConfig:
    """Options as a process of so many ranks has them."""

    class Launched(CPOConfig):
        world_size = ranks

    return Launched(
        **{"output_dir": "out", "use_cpu": True, "per_device_train_batch_size": 2, **options}
    )


def test_a_model_in_shards_is_the_experiment_that_it_is_whole(models):
    model = models("qwen2")
    kind, whole = type(model), model_facts(model)
    # what fully_shard does to the class of a module
    model.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    assert model_facts(model) == whole
    assert whole["model"] == "Qwen2ForCausalLM"


def test_the_same_options_on_other_ranks_make_the_same_steps():
    segments = [segment_of(on(2, gradient_accumulation_steps=2))]
    assert segments[0].pairs == 8
    for step, ranks, accumulation in ((3, 1, 4), (5, 3, 2), (6, 1, 4), (7, 8, 1), (9, 2, 2)):
        args = on(ranks, gradient_accumulation_steps=2)
        segments = resumed_segments(args, segments, step=step)
        assert args.step_pairs == 8
        assert args.gradient_accumulation_steps == accumulation
    assert [(one.step, one.ranks, one.accumulation) for one in segments] == [
        (0, 2, 2),
        (3, 1, 4),
        (5, 3, 2),
        (6, 1, 4),
        (7, 8, 1),
        (9, 2, 2),
    ]


def test_a_run_that_resumes_as_it_was_stays_in_its_segment():
    segments = [segment_of(on(2))]
    assert resumed_segments(on(2), segments, step=4) == segments
    once = resumed_segments(on(1), segments, step=4)
    assert resumed_segments(on(1), once, step=6) == once


def test_options_that_come_to_the_same_pairs_are_taken_as_they_are():
    args = on(1, per_device_train_batch_size=4)
    segments = resumed_segments(args, [segment_of(on(2))], step=4)
    assert (args.pairs_per_step, segments[-1].accumulation) == (None, 1)
    named = on(3, per_device_train_batch_size=1, pairs_per_step=4)
    assert resumed_segments(named, segments, step=6)[-1].accumulation == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"per_device_train_batch_size": 3},
        {"gradient_accumulation_steps": 3},
        {"pairs_per_step": 5},
    ],
)
def test_changed_options_of_other_pairs_are_left_for_the_comparison(changed: dict[str, int]):
    args = on(3, **changed)
    asked = args.step_pairs
    resumed_segments(args, [segment_of(on(2))], step=4)
    assert args.step_pairs == asked != 4
    assert "pairs_per_step=4 keeps its steps" in remedy({PAIRS}, {PAIRS: 4})


def test_options_of_steps_that_were_given_up_do_not_come_back():
    """A run whose pairs were changed on purpose (``resume_anyway``) has another constant."""
    args = on(1, gradient_accumulation_steps=3)
    segments = resumed_segments(args, [segment_of(on(1))], step=4)
    assert segments[-1].pairs == 6
    back = on(2)
    resumed_segments(back, segments, step=6)
    assert back.step_pairs == 4  # which is then refused


def test_a_checkpoint_keeps_its_segments_and_earlier_releases_had_one(tmp_path: Path):
    segments = [Segment(0, 8, 2, 2, 2, 2), Segment(3, 8, 1, 2, 4, 2)]
    shared = {"segments": json.loads(json.dumps(as_state(segments)))}
    assert segments_then(shared, {}, tmp_path) == segments
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    (tmp_path / "training_args.json").write_text(json.dumps(options))
    assert segments_then({}, {PAIRS: 16, "ranks": 2}, tmp_path) == [Segment(0, 16, 2, 2, 4, 4)]
    with pytest.raises(SetupError, match="CP512"):
        segments_then({}, {PAIRS: 16}, tmp_path)


def test_accumulation_follows_the_pairs_and_contradicts_them_aloud():
    args = on(3, pairs_per_step=7)
    assert (args.step_pairs, args.gradient_accumulation_steps) == (7, 2)
    assert on(3, pairs_per_step=7, gradient_accumulation_steps=2).step_pairs == 7
    with pytest.raises(ConfigError, match=r"CP104 gradient_accumulation_steps=3 .* it is 2"):
        on(3, pairs_per_step=7, gradient_accumulation_steps=3)
    with pytest.raises(ConfigError, match="CP103 pairs_per_step=0"):
        on(3, pairs_per_step=0)


def test_ranks_without_a_pair_are_told_of(caplog: pytest.LogCaptureFixture):
    few = on(4, pairs_per_step=3)
    found = [one.code for one in of_batch(few, pairs=100, ranks=4)]
    assert "CW129" in found
    assert "CW129" not in [one.code for one in of_batch(few, pairs=100, ranks=3)]
    announce("loss", few, 4)
    assert "CW129 3 pairs a step on 4 ranks: 1 of them only wait." in caplog.messages
    caplog.clear()
    announce("loss", few, 4, examined=True)
    assert not [text for text in caplog.messages if "CW129" in text]


def test_the_sums_of_several_ranks_become_those_of_one():
    states = [
        {"loss": torch.tensor([1.5, 2.0]), "aux": torch.tensor([1.0, 1.0])},
        {"loss": torch.tensor([0.5, 3.0])},
    ]
    total, empty = MetricSums.merged(states)
    assert {name: entry.tolist() for name, entry in total.items()} == {
        "loss": [2.0, 5.0],
        "aux": [1.0, 1.0],
    }
    assert {name: entry.tolist() for name, entry in empty.items()} == {
        "loss": [0.0, 0.0],
        "aux": [0.0, 0.0],
    }


def test_a_budget_holds_on_the_smallest_device():
    states = [
        {"tokens": None, "proved": 40},
        {"tokens": 64, "proved": 60},
        {"tokens": 32, "proved": 30},
    ]
    assert TokenBudget.least(states) == {"tokens": 32, "proved": 30}
    assert TokenBudget.least(states[:1]) == {"tokens": None, "proved": 40}


def test_new_generators_follow_from_a_seed_and_leave_those_that_there_are_alone():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    device = torch.device("cpu")
    before = random_state(device)
    states = [new_random_state(seed, device) for seed in (5, 5, 6)]
    after = random_state(device)
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["words"], after["numpy"]["words"])
    assert torch.equal(before["python"]["words"], after["python"]["words"])
    assert torch.equal(states[0]["torch"], states[1]["torch"])
    assert not torch.equal(states[0]["torch"], states[2]["torch"])
    assert not torch.equal(states[0]["torch"], before["torch"])


def test_what_a_subclass_keeps_of_a_rank_is_not_lost_in_silence(tmp_path: Path):
    class Silent(CPOTrainer):
        def rank_state_dict(self) -> dict[str, Any]:
            return {**super().rank_state_dict(), "mine": 1}

    class Merging(Silent):
        def merge_rank_states(self, states: list[dict[str, Any]]) -> Any:
            first, rest = super().merge_rank_states(states)
            return {**first, "mine": sum(one["mine"] for one in states)}, {**rest, "mine": 0}

    class Other(CPOTrainer):
        pass

    for kind in (CPOTrainer, Other, Merging):
        check_merge(kind, tmp_path, 2, 3)
    with pytest.raises(SetupError, match=r"CP526 .* Define Silent\.merge_rank_states, or resume"):
        check_merge(Silent, tmp_path, 2, 3)


def test_a_rank_whose_part_is_missing_is_named(tmp_path: Path):
    files = {f"rank-{number}.json": File(0, "") for number in (0, 2)}
    manifest = Manifest(step=3, resumable=True, fingerprint={}, versions={}, files=files)
    with pytest.raises(SetupError, match=r"CP526 .* is of 3 ranks, and what rank 1 had"):
        check_ranks(tmp_path, manifest, 3)
    check_ranks(tmp_path, manifest, 1)
