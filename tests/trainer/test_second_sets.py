"""A constraint on a second preference set: what its pairs do to a step, and what moves it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.errors import ConfigError, DataError
from counterpoint.runlog import read_run
from tests.invariance.ranks import as_stream, multipliers
from tests.small_memory import SmallMemory
from tests.steps import OBJECTIVES, distance, random_pairs, train_watched, untimed

SAFETY: dict[str, Any] = {
    "kind": "safety",
    "bound": 0.1,
    "start": 0.7,
    "rate": 20.0,
    "update": "dual_ascent",
}
LIMIT = 1e-12
"""Relative, of a float64 model: some thousand roundings of 1e-16."""


def second(count: int = 11) -> Any:
    return random_pairs(count, seed=5)


def train(models, tokenizer, folder: Path, **options: Any):
    return train_watched(
        models(options.pop("kind", "qwen2_tied")).double(),
        tokenizer,
        random_pairs(24),
        folder,
        **{
            "constraints": [SAFETY],
            "constraint_datasets": {"safety": second()},
            "per_device_train_batch_size": 8,
            **options,
        },
    )


def slow_gaps(model, rows) -> list[torch.Tensor]:
    """Chosen minus rejected of each row, from the model's own logits on unpadded rows."""
    gaps = []
    for row in rows:
        sums = []
        for side in ("chosen", "rejected"):
            prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
            ids = torch.tensor([prompt + completion])
            logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(logps.gather(1, ids[0, len(prompt) :, None]).sum())
        gaps.append(sums[0] - sums[1])
    return gaps


def test_the_surrogate_moves_the_weights_and_the_error_rate_the_multiplier(
    models, chatml_tokenizer, tmp_path: Path
):
    """The slow truth, of a step of eight pairs and eleven safety pairs that all come with it."""
    held = {**SAFETY, "pairs": 11}
    # without RMSNorm, which transformers computes in fp32 whatever the weights
    common: dict[str, Any] = {"kind": "phi", "max_steps": 1, "beta": 0.3}
    model, rows = models("phi").double(), second()
    weight = torch.tensor(rows["weight"], dtype=torch.float64)
    (both,), trainer = train(models, chatml_tokenizer, tmp_path, constraints=[held], **common)
    (without,), _ = train(
        models, chatml_tokenizer, tmp_path, constraints=None, constraint_datasets=None, **common
    )
    gaps = torch.stack(slow_gaps(model, rows))
    loss = 0.7 * (weight * -torch.nn.functional.logsigmoid(0.3 * gaps)).sum() / weight.sum()
    loss.backward()
    slow = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert distance(slow, {n: both[n] - without[n] for n in slow}) <= 1e-11
    rate = float((weight * (gaps <= 0)).sum() / weight.sum())
    (line,) = (each for each in trainer.state.log_history if "loss" in each)
    assert line["constraints/safety/value"] == pytest.approx(rate, rel=LIMIT)
    assert line["constraints/safety/multiplier"] == pytest.approx(0.7 + 20 * (rate - 0.1))


@pytest.mark.parametrize("objective", ["sigmoid", "simpo", "hinge"])
def test_a_step_with_a_second_set_does_not_depend_on_the_split(
    objective, models, chatml_tokenizer, tmp_path: Path
):
    splits: list[dict[str, Any]] = [
        {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        for size in (8, 4, 2, 1)
    ]
    splits.append({"max_micro_batch_tokens": 60})
    seen = [
        train(models, chatml_tokenizer, tmp_path, **OBJECTIVES[objective], **split)
        for split in splits
    ]
    first = seen[0][0]
    numbers = multipliers(seen[0][1].state.log_history)
    assert len(set(numbers)) > 3
    for steps, trainer in seen[1:]:
        assert multipliers(trainer.state.log_history) == pytest.approx(numbers, rel=LIMIT)
        for one, other in zip(first, steps, strict=True):
            assert distance(one, other) <= LIMIT


def test_safety_pairs_that_do_not_fit_are_cut_again(models, chatml_tokenizer, tmp_path: Path):
    options: dict[str, Any] = {"layout": "padded"}
    whole, trainer = train(models, chatml_tokenizer, tmp_path, **options)
    model = models("qwen2_tied").double()
    memory = SmallMemory(model, 150, "backward")
    steps, other = train_watched(
        model,
        chatml_tokenizer,
        random_pairs(24),
        tmp_path,
        constraints=[SAFETY],
        constraint_datasets={"safety": second()},
        per_device_train_batch_size=8,
        **options,
    )
    assert memory.failed
    assert multipliers(other.state.log_history) == pytest.approx(
        multipliers(trainer.state.log_history), rel=LIMIT
    )
    for one, again in zip(whole, steps, strict=True):
        assert distance(one, again) <= LIMIT


def test_with_a_multiplier_of_zero_a_second_set_changes_no_bit(
    models, chatml_tokenizer, tmp_path: Path
):
    """Its pairs are seen all the same: the value is in the log."""
    held = {**SAFETY, "start": 0.0, "rate": 0.0}
    with_it, trainer = train(models, chatml_tokenizer, tmp_path, constraints=[held])
    without, plain = train(
        models, chatml_tokenizer, tmp_path, constraints=None, constraint_datasets=None
    )
    for one, other in zip(with_it, without, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    lines = [
        [untimed(line) for line in each.state.log_history if "loss" in line]
        for each in (trainer, plain)
    ]
    for held_line, line in zip(*lines, strict=True):
        assert {k: v for k, v in held_line.items() if "constraints/" not in k} == line
        assert 0 <= held_line["constraints/safety/value"] <= 1


def of_run(model, tokenizer, folder: Path, **options: Any) -> CPOTrainer:
    given = options.pop("constraint_datasets", {"safety": second()})
    defaults: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
        "constraints": [SAFETY],
        "save_strategy": "no",
    }
    return CPOTrainer(
        model=model,
        args=CPOConfig(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=random_pairs(24),
        processing_class=tokenizer,
        constraint_datasets=given,
    )


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_run_with_a_second_set_goes_on_bit_for_bit(
    step, models, chatml_tokenizer, tmp_path: Path
):
    """Of 12 steps over 24 pairs; the second set's passes end after 3, 6 and 9."""
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    whole = of_run(models("qwen2_tied"), chatml_tokenizer, tmp_path, **common)
    whole.train()
    on = of_run(models("qwen2_tied"), chatml_tokenizer, tmp_path, **common)
    on.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert on.state.global_step == 12
    for (name, one), other in zip(
        whole.model.named_parameters(), on.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert multipliers(on.state.log_history) == multipliers(whole.state.log_history)


def test_another_second_set_is_another_experiment(models, chatml_tokenizer, tmp_path: Path):
    one = of_run(models("qwen2_tied"), chatml_tokenizer, tmp_path)
    other = of_run(
        models("qwen2_tied"),
        chatml_tokenizer,
        tmp_path,
        constraint_datasets={"safety": random_pairs(11, seed=6)},
    )
    differs = {k for k, v in one.fingerprint().items() if other.fingerprint()[k] != v}
    assert differs == {"data safety"}


def test_an_evaluation_measures_the_error_rate_on_the_set_for_it_or_on_the_constraints_own(
    models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2_tied").double()
    held_out = random_pairs(9, seed=8)
    for extra, rows in (({}, second()), ({"safety/eval": held_out}, held_out)):
        given = {"safety": second(), **extra}
        trainer = of_run(model, chatml_tokenizer, tmp_path, constraint_datasets=given)
        found = trainer.evaluate(random_pairs(3, seed=9))
        weight = torch.tensor(rows["weight"], dtype=torch.float64)
        with torch.no_grad():
            wrong = torch.stack(slow_gaps(model, rows)) <= 0
        value = float((weight * wrong).sum() / weight.sum())
        assert found["eval_constraints/safety/value"] == pytest.approx(value, rel=LIMIT)
        assert found["eval_constraints/safety/violation"] == pytest.approx(value - 0.1)


def test_a_relative_bound_is_a_share_of_the_initial_error_rate(
    models, chatml_tokenizer, tmp_path: Path
):
    held = {**SAFETY, "bound": None, "slack": -0.5}
    trainer = of_run(models("qwen2_tied").double(), chatml_tokenizer, tmp_path, constraints=[held])
    before = trainer.evaluate(random_pairs(3, seed=9))["eval_constraints/safety/value"]
    trainer.train()
    (facts,) = read_run(tmp_path).facts["constraints"]
    assert facts["initial"] == pytest.approx(before, rel=LIMIT)
    assert facts["bound"] == facts["initial"] / 2


def test_rows_are_read_from_the_file_that_the_constraint_names(
    models, chatml_tokenizer, tmp_path: Path
):
    file = tmp_path / "safety.jsonl"
    rows = [{"prompt": f"p {n}", "chosen": f"no {n}", "rejected": f"yes {n}"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = of_run(
        models("qwen2_tied"),
        chatml_tokenizer,
        tmp_path / "run",
        constraints=[{**SAFETY, "data": str(file)}],
        constraint_datasets=None,
        max_steps=2,
    )
    trainer.train()
    counts = read_run(tmp_path / "run").facts["data"]["safety"]
    assert counts["rows"] == counts["kept"] == 5


@pytest.mark.parametrize(
    ("changes", "given", "error", "code"),
    [
        ({}, None, ConfigError, "CP107"),
        ({}, {"safety": []}, DataError, "CP209"),
        ({}, {"safety": as_stream(second())}, ConfigError, "CP104"),
        ({}, {"safety": second(), "other": second()}, ConfigError, "CP104"),
        ({"name": "train"}, {"train": second()}, ConfigError, "CP104"),
        ({"data": "nowhere.jsonl"}, None, DataError, "CP211"),
    ],
    ids=["no rows", "empty", "streamed", "not asked for", "a name in use", "no such file"],
)
def test_a_second_set_that_cannot_be_meant_is_refused(
    changes, given, error, code, models, chatml_tokenizer, tmp_path: Path
):
    with pytest.raises(error, match=code):
        of_run(
            models("qwen2_tied"),
            chatml_tokenizer,
            tmp_path / "run",
            constraints=[{**SAFETY, **changes}],
            constraint_datasets=given,
        )


def test_rows_for_a_run_without_constraints_are_refused(models, chatml_tokenizer, tmp_path: Path):
    with pytest.raises(ConfigError, match="none takes rows"):
        of_run(models("qwen2_tied"), chatml_tokenizer, tmp_path, constraints=None)


def test_an_infinite_loss_of_an_objective_that_safety_pairs_do_not_have_stops_nothing(
    models, chatml_tokenizer, tmp_path: Path
):
    """AlphaPO's reward of a safety pair may overflow; only its log-probabilities are read."""
    rows = second().map(lambda row: {"margin": math.inf})
    steps, _ = train(
        models, chatml_tokenizer, tmp_path, loss_type="hinge", constraint_datasets={"safety": rows}
    )
    assert all(torch.isfinite(grad).all() for step in steps for grad in step.values())
