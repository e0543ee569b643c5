"""A bound on the length of what the model writes: measured at evaluations, paid for in margins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import ConfigError, CPOConfig, CPOTrainer
from counterpoint.data.pair_columns import to_pair
from counterpoint.forward.layouts import PADDED
from counterpoint.losses.constrained import length_margin
from counterpoint.losses.objective import Objective
from counterpoint.records import PairLogps
from counterpoint.runlog import read_run
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs, untimed

LENGTH: dict[str, Any] = {"kind": "length", "bound": 6.0, "rate": 10.0}
MOST = 12


def trainer_of(tokenizer, folder: Path, **options: Any) -> CPOTrainer:
    defaults: dict[str, Any] = {
        "constraints": [LENGTH],
        "generate_during_eval": True,
        "eval_samples": 3,
        "eval_sample_tokens": MOST,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return CPOTrainer(
        model=make_model("qwen2").double(),
        args=CPOConfig(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=random_pairs(16),
        eval_dataset=random_pairs(6, seed=1),
        processing_class=tokenizer,
    )


def test_a_price_on_length_asks_less_of_pairs_whose_chosen_is_the_longer_one() -> None:
    """R-DPO's term: the gap grows by it, so the loss pushes such a pair less."""
    batch = PADDED.collate([to_pair(row) for row in random_pairs(8)]).to("cpu")
    chosen, rejected = batch.target_counts.view(2, -1).double()
    off = length_margin(3.0, 6.0, batch)
    torch.testing.assert_close(off, 3.0 * (chosen - rejected) / 6.0, rtol=1e-15, atol=0)
    logps = PairLogps(
        -chosen, -rejected, batch.target_counts[: len(batch)], batch.target_counts[len(batch) :]
    )
    plain, priced = (
        Objective()(logps, margin).preference for margin in (batch.margin, batch.margin - off)
    )
    assert (priced < plain)[chosen > rejected].all()
    assert (priced > plain)[chosen < rejected].all()
    assert off.min() < 0 < off.max()


def test_the_multiplier_moves_at_evaluations_alone_by_what_was_written(
    chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(chatml_tokenizer, tmp_path)
    trainer.train()
    run = read_run(tmp_path)
    greedy = [line for line in run.samples if line["kind"] == "greedy"]
    multiplier, expected = 0.0, {}
    for step in (2, 4, 6, 8):
        lengths = [line["tokens"] for line in greedy if line["step"] == step]
        assert len(lengths) == 3
        multiplier = max(0.0, multiplier + 10.0 / 4 * (sum(lengths) / 3 - 6.0))
        expected[step] = multiplier
    assert multiplier > 0
    lines = {line["step"]: line for line in run.metrics if "loss" in line}
    seen = [lines[step]["constraints/length/multiplier"] for step in range(1, 9)]
    before = [0.0, 0.0, expected[2], expected[2], expected[4], expected[4], *[expected[6]] * 2]
    assert seen == pytest.approx(before, rel=1e-12)
    assert trainer.constraints.all[0].state.value == pytest.approx(expected[8], rel=1e-12)
    (evaluated,) = [e for e in run.metrics if "eval_loss" in e and e["step"] == 4]
    lengths = [line["tokens"] for line in greedy if line["step"] == 4]
    assert evaluated["eval_constraints/length/value"] == pytest.approx(sum(lengths) / 3)


def test_a_relative_bound_is_a_share_of_what_the_initial_policy_writes(
    chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(
        chatml_tokenizer, tmp_path, constraints=[{"kind": "length", "slack": -0.5}]
    )
    trainer.train()
    run = read_run(tmp_path)
    first = [e["tokens"] for e in run.samples if e["step"] == 0 and e["kind"] == "greedy"]
    (one,) = run.facts["constraints"]
    assert one["initial"] == sum(first) / len(first)
    assert one["bound"] == one["initial"] / 2


def test_without_a_multiplier_nothing_changes_and_with_one_the_gradient_does(
    chatml_tokenizer, tmp_path: Path
):
    weights = []
    for constraints in (
        None,
        [{**LENGTH, "rate": 0.0}],
        [{**LENGTH, "rate": 0.0, "start": 2.0}],
    ):
        trainer = trainer_of(chatml_tokenizer, tmp_path, constraints=constraints)
        trainer.train()
        weights.append({name: p.clone() for name, p in trainer.model.state_dict().items()})
    plain, free, priced = weights
    assert all(torch.equal(plain[name], free[name]) for name in plain)
    assert not all(torch.equal(plain[name], priced[name]) for name in plain)


def test_a_run_that_goes_on_pays_the_same_price(chatml_tokenizer, tmp_path: Path):
    kept = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(chatml_tokenizer, tmp_path, **kept)
    whole.train()
    again = trainer_of(chatml_tokenizer, tmp_path, **kept)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.constraints.all[0].state_dict() == whole.constraints.all[0].state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    last = [untimed(t.state.log_history[-2]) for t in (whole, again)]
    assert last[0] == last[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"generate_during_eval": False}, "generate_during_eval"),
        ({"eval_strategy": "no"}, "eval_strategy"),
        ({"constraints": [{**LENGTH, "bound": 12.0}]}, "below eval_sample_tokens=12"),
        ({"loss_type": "apo_zero"}, "price off the margin of each pair"),
        ({"constraints": [{**LENGTH, "update": "augmented_lagrangian"}]}, "another update"),
    ],
)
def test_what_could_not_be_measured_is_refused(
    options: dict[str, Any], words: str, chatml_tokenizer, tmp_path: Path
):
    with pytest.raises(ConfigError, match=f"CP104 .*{words}"):
        trainer_of(chatml_tokenizer, tmp_path, **options)


def test_a_relative_bound_that_no_text_can_pass_is_refused_once_it_is_known(
    chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(chatml_tokenizer, tmp_path, constraints=[{"kind": "length", "slack": 9}])
    with pytest.raises(ConfigError, match=r"CP104 .*at which texts are cut"):
        trainer.train()
