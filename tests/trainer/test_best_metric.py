"""What chooses by a metric has one, or the run is refused before its first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerFast

from counterpoint import ConfigError, CPOConfig, CPOTrainer
from counterpoint.trainer.best import names_given
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs

PAIRS = random_pairs(4)
NAMED = {"en": random_pairs(2), "zh": random_pairs(3, seed=1)}
BEST: dict[str, Any] = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}


class Build:
    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def __call__(self, options: dict[str, Any], *, kind: str = "qwen2", **more: Any) -> CPOTrainer:
        given = {"max_steps": 2, "save_strategy": "no", "disable_tqdm": True}
        given |= {"eval_strategy": "steps", "eval_steps": 1}
        args = CPOConfig(output_dir=str(self.folder), use_cpu=True, **{**given, **options})
        given = {"train_dataset": PAIRS, "eval_dataset": PAIRS, "processing_class": self.tokenizer}
        return CPOTrainer(make_model(kind), args, **{**given, **more})


@pytest.fixture
def build(tmp_path: Path, gpt2_tokenizer: PreTrainedTokenizerFast) -> Build:
    return Build(tmp_path, gpt2_tokenizer)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": {"kind": "mixtral"},
    "named sets": {"eval_dataset": NAMED},
    "texts": {"options": {"generate_during_eval": True, "eval_sample_tokens": 2}},
    "sampled texts": {
        "options": {"generate_during_eval": True, "eval_sample_tokens": 2, "eval_samples": 1}
        | {"eval_sample_temperature": 1.0}
    },
    "constraints": {"options": {"constraints": [{"kind": "bc", "bound": 9.0}]}},
}


@pytest.mark.parametrize("name", RUNS)
def test_the_names_that_are_told_are_those_that_an_evaluation_gives(
    build: Build, name: str
) -> None:
    more = dict(RUNS[name])
    trainer = build(more.pop("options", {}), **more)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_runtime" in "".join(line)]
    lines += [line for line in trainer.state.log_history if any("runtime" in n for n in line)]
    given = {n for line in lines for n in line if n.startswith("eval_")}
    told = set(names_given(trainer))
    assert given - told == set()
    assert {n for n in told - given if "exact_match" not in n} == set()


def test_named_sets_with_the_default_metric_are_refused_with_the_names_there_are(
    build: Build,
) -> None:
    trainer = build(BEST, eval_dataset=NAMED)
    with pytest.raises(ConfigError) as caught:
        trainer.train()
    assert caught.value.code == "CP108"
    assert "metric_for_best_model=loss" in caught.value.message
    assert "eval_en_loss" in caught.value.message
    assert "eval_zh_loss" in caught.value.message
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("rewards/acuracies", "eval_rewards/accuracies"),
        ("eval_los", "eval_loss"),
        ("reward/margin", "eval_rewards/margins"),
        ("accuracy", "eval_rewards/accuracies"),
    ],
)
@pytest.mark.parametrize(
    "by", [BEST, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {"save_strategy": "best"}]
)
def test_a_misspelt_metric_is_refused_with_the_nearest_before_the_first_step(
    build: Build, wanted: str, near: str, by: dict[str, Any]
) -> None:
    trainer = build({**by, "metric_for_best_model": wanted})
    with pytest.raises(ConfigError, match=rf"^CP108 .*did you mean {near}\?"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("wanted", ["samples/ended", "aux_loss", "constraints/bc/violation"])
def test_a_metric_that_this_run_does_not_measure_is_refused(build: Build, wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"^CP108 "):
        build({**BEST, "metric_for_best_model": wanted}).train()


def test_a_metric_of_compute_metrics_is_looked_for_when_it_has_run(build: Build) -> None:
    def gives(prediction: Any) -> dict[str, float]:
        return {"mine": float(prediction.predictions.mean())}

    trainer = build({**BEST, "metric_for_best_model": "mine"}, compute_metrics=gives)
    trainer.train()
    assert trainer.state.best_metric is not None
    for by in (BEST, {"lr_scheduler_type": "reduce_lr_on_plateau"}):
        wrong = build({**by, "metric_for_best_model": "mein"}, compute_metrics=gives)
        with pytest.raises(ConfigError, match=r"^CP108 .*did you mean eval_mine\?"):
            wrong.train()


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("loss", False),
        ("eval_nll_loss", False),
        ("rewards/accuracies", True),
        ("eval_en_rewards/margins", True),
        ("constraints/bc/violation", False),
        ("samples/repetition", False),
        ("eval_runtime", False),
        ("f1", True),
    ],
)
def test_what_is_better_follows_from_the_metric(metric: str, greater: bool) -> None:
    config = CPOConfig(output_dir="o", use_cpu=True, metric_for_best_model=metric)
    assert config.greater_is_better is greater
    assert dataclasses.replace(config).greater_is_better is greater


@pytest.mark.parametrize(
    ("metric", "greater", "sets"),
    [
        ("loss", True, PAIRS),
        ("rewards/accuracies", False, PAIRS),
        ("eval_zh_loss", True, NAMED),
    ],
)
def test_the_worst_is_not_taken_for_the_best(
    build: Build, metric: str, greater: bool, sets: Any
) -> None:
    options = {**BEST, "metric_for_best_model": metric, "greater_is_better": greater}
    with pytest.raises(ConfigError, match=r"^CP104 greater_is_better="):
        build(options, eval_dataset=sets).train()
    options["greater_is_better"] = not greater
    trainer = build(options, eval_dataset=sets)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_early_stopping_without_a_metric_or_an_evaluation_is_refused(build: Build) -> None:
    stopping = {"callbacks": [EarlyStoppingCallback(1)]}
    with pytest.raises(ConfigError, match=r"^CP107 metric_for_best_model is missing: EarlyStop"):
        build({}, **stopping).train()
    options = {"metric_for_best_model": "loss", "eval_strategy": "no"}
    with pytest.raises(ConfigError, match=r"^CP107 eval_strategy is missing: EarlyStop"):
        build(options, **stopping).train()
    with pytest.raises(ConfigError, match=r"^CP108 "):
        build({"metric_for_best_model": "los"}, **stopping).train()


def test_a_plateau_of_the_users_own_goes_by_a_metric_too(build: Build) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ConfigError, match=r"^CP107 .*ReduceLROnPlateau"):
        build({}, optimizers=(optimizer, plateau)).train()


@pytest.mark.parametrize("option", [{"eval_strategy": "steps"}, {"eval_on_start": True}])
@pytest.mark.parametrize("sets", [None, {}])
def test_evaluating_on_nothing_is_refused_at_once(
    build: Build, option: dict[str, Any], sets: Any
) -> None:
    with pytest.raises(ConfigError, match=r"^CP107 eval_dataset is missing"):
        build({"eval_strategy": "no", **option}, eval_dataset=sets)


def test_a_run_that_gets_no_better_ends_and_says_so(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    # the loss stands still, and so it is never better
    options = {"max_steps": 9, "learning_rate": 0.0, "early_stopping_patience": 2}
    trainer = build(options)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.args.metric_for_best_model == "loss"
    assert trainer.args.greater_is_better is False
    (said,) = [one for one in caplog.messages if "early_stopping_patience" in one]
    assert said.startswith("step 3: loss was not better than ")
    assert "in 2 evaluations in a row: the run ends here" in said


def test_of_several_sets_the_one_with_the_metric_ends_a_run(build: Build) -> None:
    options = {"max_steps": 9, "learning_rate": 0.0, "early_stopping_patience": 1}
    with pytest.raises(ConfigError, match=r"^CP108 metric_for_best_model=loss .*zh_loss"):
        build(options, eval_dataset=NAMED).train()
    trainer = build({**options, "metric_for_best_model": "zh_loss"}, eval_dataset=NAMED)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_gain_under_the_threshold_is_none(build: Build) -> None:
    options = {"max_steps": 4, "learning_rate": 1e-2, "early_stopping_patience": 1}
    whole = build(options)
    whole.train()
    assert whole.state.global_step == 4
    short = build({**options, "early_stopping_threshold": 100.0})
    short.train()
    assert short.state.global_step == 2


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"early_stopping_patience": 0}, r"^CP103 early_stopping_patience=0 .*at least 1"),
        ({"early_stopping_patience": 1.5}, r"^CP103 "),
        ({"early_stopping_threshold": 0.1}, r"^CP104 early_stopping_threshold=0.1 would do noth"),
        ({"early_stopping_patience": 1, "early_stopping_threshold": -1.0}, r"^CP103 "),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, r"^CP107 eval_strategy is missing"),
    ],
)
def test_an_end_that_cannot_be_meant_is_refused(
    build: Build, options: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(ConfigError, match=wrong):
        build(options)
