"""What constrained mode promises of a run: the nine rules, one by one."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from counterpoint import Constraint, CPOConfig, CPOTrainer
from counterpoint.constraints import UPDATES
from counterpoint.errors import NonFiniteError
from counterpoint.runlog import read_run
from tests.models_on_the_spot import make_model
from tests.reliability.trials import TORTURE
from tests.steps import OBJECTIVES, random_pairs, train_watched, untimed

BC: dict[str, Any] = {"kind": "bc", "slack": -0.01, "rate": 100.0, "update": "dual_ascent"}
FOUR_STEPS: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def lines_of(trainer: CPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


class Frames(TrainerCallback):
    """The multiplier around each optimizer step, and the weights after it."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.trainer: Any = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.before.append(self.trainer.constraints.all[0].state.value)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after.append(self.trainer.constraints.all[0].state.value)


def trainer_of(model, tokenizer, folder: Path, pairs: Any = None, **options: Any) -> CPOTrainer:
    defaults: dict[str, Any] = {
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        **FOUR_STEPS,
    }
    return CPOTrainer(
        model=model,
        args=CPOConfig(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=random_pairs(16) if pairs is None else pairs,
        processing_class=tokenizer,
    )


# Rules 1 and 3


def test_a_multiplier_holds_still_for_a_step_and_moves_once_after_it(
    models, chatml_tokenizer, tmp_path: Path, monkeypatch
):
    trainer = trainer_of(models("qwen2").double(), chatml_tokenizer, tmp_path, constraints=[BC])
    frames, weights = Frames(), []
    frames.trainer = trainer
    trainer.add_callback(frames)
    share = trainer.constraints.share

    def watched(*args: Any) -> Any:
        weights.append(trainer.constraints.all[0].weight)
        return share(*args)

    monkeypatch.setattr(trainer.constraints, "share", watched)
    trainer.train()
    assert len(weights) == 2 * 4  # micro-batches x steps
    assert weights[0::2] == weights[1::2]
    assert weights[0::2] == frames.before
    assert frames.before == [1.0, *frames.after[:-1]]
    assert len(set(frames.after)) == 4
    assert trainer.constraints.all[0].state.steps == trainer.state.global_step == 4


def test_it_moves_by_the_value_at_the_weights_that_the_step_was_taken_at(
    models, chatml_tokenizer, tmp_path: Path
):
    """The slow truth: the model's own full logits on unpadded rows, and the rule by hand."""
    model, pairs = models("qwen2").double(), random_pairs(16)
    truth: list[float] = []

    class Slow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nll = tokens = 0.0
            with torch.no_grad():
                for row in pairs.select(range(4 * state.global_step, 4 * state.global_step + 4)):
                    prompt, chosen = row["prompt_ids"], row["chosen_ids"]
                    ids = torch.tensor([prompt + chosen])
                    logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                    nll -= row["weight"] * float(logps.gather(1, ids[0, len(prompt) :, None]).sum())
                    tokens += row["weight"] * len(chosen)
            truth.append(nll / tokens)

    trainer = trainer_of(model, chatml_tokenizer, tmp_path, pairs, constraints=[BC])
    trainer.add_callback(Slow())
    trainer.train()
    multiplier = 1.0
    for value, line in zip(truth, lines_of(trainer), strict=True):
        assert line["constraints/bc/value"] == pytest.approx(value, rel=1e-12)
        multiplier = max(0.0, multiplier + 100.0 / 4 * (value - line["constraints/bc/bound"]))
        assert line["constraints/bc/multiplier"] == pytest.approx(multiplier, rel=1e-10)


def test_a_relative_bound_is_a_share_of_what_the_initial_policy_has(
    models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2").double()
    trainer = trainer_of(
        model, chatml_tokenizer, tmp_path, constraints=[{**BC, "slack": 0.25}], learning_rate=1e-3
    )
    evaluated = trainer.evaluate(random_pairs(16, weighted=False))
    trainer.train_dataset = random_pairs(16, weighted=False)
    trainer.train()
    facts = read_run(tmp_path).facts
    (bc,) = facts["constraints"]
    assert bc["initial"] == pytest.approx(evaluated["eval_nll_loss"], rel=1e-12)
    assert bc["bound"] == bc["initial"] * 1.25
    assert facts["calibration"]["pairs"] == 16
    assert len(facts["calibration"]["digest"]) == 40


# Rule 4


def test_weight_decay_and_clipping_do_not_reach_a_multiplier(
    models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(
        models("qwen2").double(),
        chatml_tokenizer,
        tmp_path,
        constraints=[BC],
        weight_decay=0.5,
        max_grad_norm=1e-3,
    )
    trainer.train()
    expected = 1.0
    for line in lines_of(trainer):
        expected = max(0.0, expected + 25 * line["constraints/bc/violation"])
        assert line["constraints/bc/multiplier"] == pytest.approx(expected, rel=1e-12)


# Rules 5 and 6


def test_a_skipped_step_moves_no_multiplier(models, chatml_tokenizer, tmp_path: Path):
    """Steps of four pairs; the second has a pair whose margin, and so its loss, is NaN."""
    pairs = random_pairs(16).map(lambda row: {"margin": math.nan if row["row"] == 5 else 0.0})
    trainer = trainer_of(
        models("qwen2").double(),
        chatml_tokenizer,
        tmp_path,
        pairs,
        constraints=[{**BC, "start": 10.0}],
        nonfinite="skip",
        learning_rate=0.0,
    )
    frames = Frames()
    frames.trainer = trainer
    trainer.add_callback(frames)
    trainer.train()
    assert frames.before[1] == frames.after[1]
    assert frames.before[2] != frames.after[2]
    assert trainer.constraints.all[0].state.steps == 3


def test_a_step_that_the_optimizer_left_out_moves_no_multiplier(
    models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, constraints=[BC])
    close_step = trainer.constraints.close_step
    trainer.constraints.close_step = lambda step, skipped: close_step(step, skipped=True)
    trainer.train()
    assert trainer.constraints.all[0].state.value == 1.0
    assert trainer.constraints.all[0].state.steps == 0


def test_a_step_without_weight_leaves_the_multiplier(models, chatml_tokenizer, tmp_path: Path):
    pairs = random_pairs(16).map(lambda row: {"weight": 0.0 if 4 <= row["row"] < 8 else 1.0})
    trainer = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, pairs, constraints=[BC])
    frames = Frames()
    frames.trainer = trainer
    trainer.add_callback(frames)
    trainer.train()
    assert frames.before[1] == frames.after[1]
    assert "constraints/bc/value" not in lines_of(trainer)[1]
    assert trainer.constraints.all[0].state.steps == 3


# Rule 7


AXES = [["sigmoid", "cpo-simpo", "ipo", "orpo"], list(UPDATES), ["token_mean", "sequence_sum"]]
EVERY = list(product(*AXES))
SOME = [one for one in EVERY if sum(map(list.index, AXES, one)) % 2 == 0]
"""In CI: with every two words of different axes, and not with every three."""


@pytest.fixture(scope="module")
def of_fixed_weight(chatml_tokenizer, tmp_path_factory) -> Any:
    """Weights and log of a run, with constraints or without; those without are run once."""

    def run(objective: str, reduction: str, constraints: Any = None) -> Any:
        model = make_model("qwen2_tied")
        trainer = trainer_of(
            model,
            chatml_tokenizer,
            tmp_path_factory.mktemp("fixed"),
            constraints=constraints,
            weight_decay=0.1,
            **{**OBJECTIVES[objective], "cpo_alpha": 0.3, "nll_reduction": reduction},
        )
        trainer.train()
        return model.state_dict(), [untimed(line) for line in trainer.state.log_history]

    return run, cache(run)


@pytest.mark.parametrize(("objective", "update", "reduction"), EVERY if TORTURE else SOME)
def test_a_rate_of_zero_is_the_fixed_weight_bit_for_bit(
    objective, update, reduction, of_fixed_weight
):
    run, once = of_fixed_weight
    held = {"kind": "bc", "rate": 0.0, "update": update, "bound": 0.5}
    (weights, logs), (again, others) = once(objective, reduction), run(objective, reduction, [held])
    for name, tensor in weights.items():
        assert torch.equal(tensor, again[name]), name
    for one, other in zip(logs, others, strict=True):
        assert {name: other[name] for name in one} == one


# Rule 8


@pytest.mark.parametrize("weight", [1e308, 1e200])
def test_a_relative_bound_of_a_value_that_overflows_is_refused(
    weight: float, models, chatml_tokenizer, tmp_path: Path
):
    # sums of the calibration slice are infinite at 1e308, and finite at 1e200
    pairs = random_pairs(16, weighted=False)
    heavy = pairs.remove_columns("weight").add_column("weight", [weight] * len(pairs))
    relative = {**BC, "slack": 0.25}
    trainer = trainer_of(
        models("qwen2").double(), chatml_tokenizer, tmp_path, heavy, constraints=[relative]
    )
    if weight == 1e200:
        trainer.train()
        return
    with pytest.raises(NonFiniteError, match=r"^CP401 the bound of bc .* which is nan on the 16"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_infeasible_bound_is_reported(models, chatml_tokenizer, tmp_path: Path):
    held = {"kind": "bc", "bound": 0.01, "cap": 1.0}
    trainer = trainer_of(
        models("qwen2"), chatml_tokenizer, tmp_path, random_pairs(64), constraints=[held]
    )
    trainer.train()
    (alarm,) = [one for one in read_run(tmp_path).alarms if one["code"] == "CW441"]
    assert (alarm["step"], alarm["since"]) == (10, 1)
    assert "bound of 0.01" in alarm["seen"]
    assert lines_of(trainer)[-1]["constraints/bc/at_cap"] == 1.0


def test_a_bound_that_is_held_is_not_reported(models, chatml_tokenizer, tmp_path: Path):
    held = {"kind": "bc", "slack": 1.0, "cap": 1.0}
    trainer = trainer_of(
        models("qwen2"), chatml_tokenizer, tmp_path, random_pairs(64), constraints=[held]
    )
    trainer.train()
    assert not [one for one in read_run(tmp_path).alarms if one["code"] == "CW441"]


# Rule 9


def test_a_run_that_goes_on_has_the_multipliers_of_one_that_was_not_cut(
    models, chatml_tokenizer, tmp_path: Path
):
    held = [
        {**BC, "update": "pid", "derivative": 1e-3},
        {"kind": "displacement", "bound": 0.0, "update": "nu_pi"},
        {"kind": "absolute_preference", "bound": 0.1, "margin": 0.5, "update": "dual_ascent"},
    ]
    common: dict[str, Any] = {
        "constraints": held,
        "logging_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path / "a", **common)
    whole.train()
    models_cut = models("qwen2")
    again = trainer_of(models_cut, chatml_tokenizer, tmp_path / "a", **common)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for one, other in zip(whole.constraints.all, again.constraints.all, strict=True):
        assert one.state_dict() == other.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert untimed(lines_of(again)[-1]) == untimed(lines_of(whole)[-1])


def test_an_evaluation_before_a_step_does_not_change_what_it_is_measured_at(
    chatml_tokenizer, tmp_path: Path
):
    """With dropout a step is measured as it is taken, not as the evaluation left the model."""
    held = [{**BC, "update": "augmented_lagrangian"}]
    values = []
    for when in ("no", "steps"):
        trainer = CPOTrainer(
            model=make_model("gpt2", resid_pdrop=0.3),
            args=CPOConfig(
                output_dir=str(tmp_path),
                disable_dropout=False,
                eval_strategy=when,
                eval_steps=1,
                learning_rate=0.0,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                gradient_checkpointing=False,
                save_strategy="no",
                monitor_steps=0,
                disable_tqdm=True,
                logging_steps=1,
                use_cpu=True,
                constraints=held,
                **FOUR_STEPS,
            ),
            train_dataset=random_pairs(16),
            eval_dataset=random_pairs(4, seed=1),
            processing_class=chatml_tokenizer,
        )
        modes: list[bool] = []
        numerators = trainer.constraints.numerators

        def watched(*args: Any, trainer: Any = trainer, inner: Any = numerators) -> Any:
            if not torch.is_grad_enabled() and len(args) == 3:  # of a step, not of an evaluation
                modes.append(trainer.model.training)  # noqa: B023 - called within this round
            return inner(*args)

        trainer.constraints.numerators = watched
        trainer.train()
        values.append([line["constraints/bc/value"] for line in lines_of(trainer)])
        assert modes[-8:] == [True] * 8  # two micro-batches of four steps
    assert values[0] == values[1]


def test_a_checkpoint_says_in_plain_text_where_the_multipliers_are(
    models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(
        models("qwen2"),
        chatml_tokenizer,
        tmp_path,
        constraints=[BC, {"kind": "displacement"}],
        save_strategy="steps",
        save_steps=4,
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-4" / "run_state.json").read_text())
    kept = state["own"]["constraints"]
    assert [one["name"] for one in kept["constraints"]] == ["bc", "displacement"]
    assert kept["constraints"][0]["multiplier"]["value"] == trainer.constraints.all[0].state.value
    assert kept["calibration"] == trainer.constraints.calibration


def test_another_bound_is_another_experiment(models, chatml_tokenizer, tmp_path: Path):
    from counterpoint import SetupError

    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, constraints=[BC], **common).train()
    other = trainer_of(
        models("qwen2"), chatml_tokenizer, tmp_path, constraints=[{**BC, "slack": 0.5}], **common
    )
    with pytest.raises(SetupError, match=r"CP513 .*constraint bc"):
        other.train(resume_from_checkpoint=True)


# What is measured


def test_displacement_counts_what_chosen_completions_have_lost_and_not_what_they_gained(
    models, chatml_tokenizer, tmp_path: Path
):
    model, pairs = models("qwen2").double(), random_pairs(16, weighted=False)
    trainer = trainer_of(
        model,
        chatml_tokenizer,
        tmp_path,
        pairs,
        constraints=[{"kind": "displacement", "bound": 0.1}],
        learning_rate=0.0,
    )
    trainer.train()
    assert [line["constraints/displacement/value"] for line in lines_of(trainer)] == [0.0] * 4
    before = trainer.measure(trainer.train_dataset).scores()
    with torch.no_grad():
        model.lm_head.weight += 0.1 * torch.randn_like(model.lm_head.weight)
    after = trainer.measure(trainer.train_dataset).scores()
    lost = (before.chosen_logps - after.chosen_logps) / before.chosen_tokens
    assert lost.min() < 0 < lost.max()
    found = trainer.evaluate(trainer.train_dataset)
    expected = lost.clip(min=0).mean()
    assert found["eval_constraints/displacement/value"] == pytest.approx(expected, rel=1e-10)
    violation = found["eval_constraints/displacement/violation"]
    assert violation == pytest.approx(expected - 0.1, rel=1e-10)


def test_a_function_of_your_own_is_held_like_any_other(models, chatml_tokenizer, tmp_path: Path):
    def rejected_nll(logps: Any, batch: Any) -> Any:
        return -logps.rejected

    def tokens(batch: Any) -> Any:
        return batch.target_counts[len(batch) :]

    own = Constraint(
        "custom", "rejected", bound=0.0, numerator=rejected_nll, denominator=tokens, rate=10.0
    )
    trainer = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, constraints=[own])
    trainer.train()
    first = lines_of(trainer)[0]
    assert first["constraints/rejected/value"] == pytest.approx(math.log(384), rel=0.2)
    assert first["constraints/rejected/multiplier"] > 0
    assert (
        read_run(tmp_path).facts["options"]["constraints"][0]["numerator"].endswith("rejected_nll")
    )


def test_a_function_that_does_not_give_a_number_a_pair_is_refused(
    models, chatml_tokenizer, tmp_path: Path
):
    from counterpoint import ConfigError

    own = Constraint(
        "custom", "mean", bound=0.0, numerator=lambda logps, batch: logps.chosen.mean()
    )
    trainer = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, constraints=[own])
    with pytest.raises(ConfigError, match=r"CP103 constraint mean: .* number a pair"):
        trainer.train()


def test_normalisation_divides_the_step_by_one_plus_the_multipliers(
    chatml_tokenizer, tmp_path: Path
):
    held = [{"kind": "bc", "rate": 0.0, "bound": 0.0, "start": 3.0}]
    pictures = []
    for normalized in (False, True):
        steps, _ = train_watched(
            make_model("qwen2").double(),
            chatml_tokenizer,
            random_pairs(4),
            tmp_path,
            constraints=held,
            constraint_normalization=normalized,
            per_device_train_batch_size=4,
        )
        pictures += steps
    for name, gradient in pictures[0].items():
        torch.testing.assert_close(pictures[1][name] * 4, gradient, rtol=1e-12, atol=1e-15)
