"""A bound on the drift from the initial policy, from the first step to a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from counterpoint import CPOConfig, CPOTrainer, SetupError
from counterpoint.runlog import read_run
from tests.float64 import Float64Throughout
from tests.models_on_the_spot import make_model
from tests.reliability.trials import TORTURE
from tests.steps import distance, random_pairs, train_watched, untimed

HELD: dict[str, Any] = {"kind": "kl_drift", "bound": 1e-3, "rate": 2000.0, "start": 1.0}
VALUE, MULTIPLIER = "constraints/kl_drift/value", "constraints/kl_drift/multiplier"


def adapted(*more: str) -> nn.Module:
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", *more]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    return peft.get_peft_model(make_model("qwen2"), config)


MODELS: dict[str, Any] = {"full": lambda: make_model("qwen2_tied"), "lora": adapted}


def trained(
    model: nn.Module, tokenizer: Any, folder: Path, *, pairs: int = 32, **options: Any
) -> CPOTrainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "constraints": [HELD],
        "learning_rate": 1e-2,
    }
    _, trainer = train_watched(model, tokenizer, random_pairs(pairs), folder, **defaults | options)
    return trainer


def lines_of(trainer: CPOTrainer) -> list[dict[str, Any]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("kind", MODELS)
def test_at_the_first_step_the_drift_is_exactly_zero_and_then_it_is_not(
    kind, layout, chatml_tokenizer, tmp_path: Path
):
    lines = lines_of(trained(MODELS[kind](), chatml_tokenizer, tmp_path, layout=layout))
    assert lines[0][VALUE] == 0.0
    assert all(line[VALUE] > 0 for line in lines[1:])
    (facts,) = read_run(tmp_path).facts["constraints"]
    assert (facts["kind"], facts["bound"], facts["initial"]) == ("kl_drift", 1e-3, 0.0)


LIMITS = {torch.float64: 1e-11, torch.float32: 1e-4}
"""Relative, of some thousand roundings; a drift of 1e-3 is left of logits of 1, squared."""


EVERY = [(kind, dtype) for kind in (*MODELS, "lora of the head") for dtype in LIMITS]
SOME = [("full", torch.float64), ("lora", torch.float64), ("full", torch.float32)]
CUTS = (1, 2, 4, 8) if TORTURE else (1, 8)


@pytest.mark.parametrize(("kind", "dtype"), EVERY if TORTURE else SOME)
def test_drift_multiplier_and_gradient_do_not_depend_on_cut_and_layout(
    kind, dtype, chatml_tokenizer, tmp_path: Path
):
    ways = [
        {"per_device_train_batch_size": 8 // cut, "gradient_accumulation_steps": cut}
        for cut in CUTS
    ]
    ways += [{"per_device_train_batch_size": 8, "layout": "shared"}]
    ways += [{"per_device_train_batch_size": 8, "layout": "shared", "max_micro_batch_tokens": 40}]
    seen = []
    for way in ways:
        model = (MODELS[kind]() if kind in MODELS else adapted("lm_head")).to(dtype)
        with Float64Throughout() if dtype == torch.float64 else torch.enable_grad():
            steps, trainer = train_watched(
                model,
                chatml_tokenizer,
                random_pairs(24),
                tmp_path,
                constraints=[HELD],
                **{"layout": "padded", "optim": "sgd", "learning_rate": 0.03, **way},
            )
        lines = lines_of(trainer)
        seen.append((steps, [(line[VALUE], line[MULTIPLIER]) for line in lines]))
    (first, numbers), limit = seen[0], LIMITS[dtype]
    assert numbers[-1][0] > 1e-4
    assert numbers[-1][1] != numbers[0][1]
    for steps, found in seen[1:]:
        for one, other in zip(numbers, found, strict=True):
            assert other == pytest.approx(one, rel=limit, abs=limit * 1e-3)
        for one, other in zip(first, steps, strict=True):
            assert distance(one, other) <= limit


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(kind, chatml_tokenizer, tmp_path: Path):
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = trained(MODELS[kind](), chatml_tokenizer, tmp_path, **common)
    again = going_on(MODELS[kind](), chatml_tokenizer, tmp_path, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in zip(lines_of(whole), lines_of(again), strict=True):
        assert untimed(one) == untimed(other)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def going_on(model: nn.Module, tokenizer: Any, folder: Path, **options: Any) -> CPOTrainer:
    """A trainer that has not trained yet."""
    defaults: dict[str, Any] = {
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "constraints": [HELD],
        "learning_rate": 1e-2,
    }
    return CPOTrainer(
        model=model,
        args=CPOConfig(output_dir=str(folder), **defaults | options),
        train_dataset=random_pairs(32),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_does_not_go_on_from_another_initial_policy(kind, chatml_tokenizer, tmp_path: Path):
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    trained(MODELS[kind](), chatml_tokenizer, tmp_path, **common)
    last = str(tmp_path / "checkpoint-4")
    other = MODELS[kind]()
    with torch.no_grad():
        next(p for p in other.parameters() if p.requires_grad).flatten()[0] += 1
    refused = going_on(other, chatml_tokenizer, tmp_path, **common)
    with pytest.raises(SetupError, match=r"CP513 .*model that the run began with"):
        refused.train(resume_from_checkpoint=last)
    anyway = going_on(other, chatml_tokenizer, tmp_path, resume_anyway=True, **common)
    anyway.train(resume_from_checkpoint=last)
    assert anyway.state.global_step == 8


def test_a_checkpoint_names_the_initial_policy_and_does_not_hold_it(
    chatml_tokenizer, tmp_path: Path
):
    trainer = trained(adapted(), chatml_tokenizer, tmp_path, save_strategy="steps", save_steps=4)
    state = json.loads((tmp_path / "checkpoint-4" / "run_state.json").read_text())
    assert state["own"]["constraints"]["initial policy"] == trainer.constraints._policy_digest
    assert len(trainer.constraints._policy_digest) == 32


def test_held_out_pairs_are_measured_against_the_same_policy(chatml_tokenizer, tmp_path: Path):
    trainer = going_on(make_model("qwen2").double(), chatml_tokenizer, tmp_path)
    assert "eval_constraints/kl_drift/value" not in trainer.evaluate(random_pairs(8, seed=9))
    trainer.train()
    found = trainer.evaluate(random_pairs(8, seed=9))
    value = found["eval_constraints/kl_drift/value"]
    assert value > 0
    assert found["eval_constraints/kl_drift/violation"] == pytest.approx(value - 1e-3, rel=1e-12)
    with trainer.constraints.policy.as_it_was():
        assert trainer.evaluate(random_pairs(8, seed=9))["eval_constraints/kl_drift/value"] == 0.0


def test_a_bound_is_held_where_a_run_without_one_goes_on_drifting(chatml_tokenizer, tmp_path: Path):
    """The same 48 steps of all pairs, the multiplier fixed at 0, and free to rise.

    In the last quarter the bound is held to a twentieth of it.
    """
    drifts = {}
    for rate in (0.0, 1000.0):
        held = {"kind": "kl_drift", "bound": 0.1, "update": "nu_pi", "rate": rate}
        trainer = trained(
            make_model("qwen2"),
            chatml_tokenizer,
            tmp_path,
            pairs=8,
            constraints=[{**held, "proportional": 0.1}],
            per_device_train_batch_size=8,
            num_train_epochs=48,
            lr_scheduler_type="constant",
            learning_rate=1e-3,
        )
        drifts[rate] = [line[VALUE] for line in lines_of(trainer)[-12:]]
    assert min(drifts[0.0]) > 0.4
    assert max(drifts[1000.0]) <= 0.105


def test_dropout_of_the_policy_does_not_reach_the_initial_one(chatml_tokenizer, tmp_path: Path):
    """The drift of the first step is that of dropout alone; no other number is drawn for it."""
    losses = []
    for constraints in (None, [{**HELD, "start": 0.0, "rate": 0.0}]):
        model = make_model("gpt2", resid_pdrop=0.3)
        trainer = trained(
            model, chatml_tokenizer, tmp_path, constraints=constraints, disable_dropout=False
        )
        losses.append([line["loss"] for line in lines_of(trainer)])
    assert losses[0] == losses[1]
    assert lines_of(trainer)[0][VALUE] > 0
