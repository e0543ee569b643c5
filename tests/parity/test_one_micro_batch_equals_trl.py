"""Compatibility: on one micro-batch TRL 1.16's loss, gradients and metrics are ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.objectives import DEFAULT_LOSS, LOSSES
from tests.parity.one_micro_batch import one_step, options_of_both
from tests.steps import distance

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "smoothed": {"label_smoothing": 0.1},
    "heavy NLL": {"cpo_alpha": 3.0, "beta": 1.0},
    "no NLL": {"cpo_alpha": 0.0},
    "hinge": {"loss_type": "hinge"},
    "ipo": {"loss_type": "ipo"},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    "cpo-simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    "alphapo": {"loss_type": "alphapo", "beta": 2.0, "alpha": 0.25},
    "alphapo, negative": {"loss_type": "alphapo", "beta": 2.0, "alpha": -0.25},
    "reshaped sum": {"loss_type": "sigmoid", "alpha": 0.02, "beta": 0.02},
    "reshaped hinge": {"loss_type": "hinge", "alpha": 0.02, "beta": 0.02},
    "reshaped ipo": {"loss_type": "ipo", "alpha": 0.3},
}
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "nll_loss",
)
"""All of TRL's but logits/*, which TRL averages over prompt and padding too."""


def test_every_loss_of_its_trainer_is_compared() -> None:
    compared = {options.get("loss_type", DEFAULT_LOSS) for options in SETTINGS.values()}
    assert compared == {row.name for row in LOSSES.values() if row.trl == "CPO"}


@pytest.fixture(scope="module")
def rows() -> Dataset:
    questions = ["What is two and two?", "Name a colour.", "Where is the sun?", "Say hello."]
    good = [" It is four.", " Blue is one.", " In the sky, far away.", " Hello there, friend."]
    bad = [" Five.", " I do not know any colours at all.", " Here.", " No."]
    return Dataset.from_list(
        [
            {"prompt": q, "chosen": c, "rejected": r}
            for q, c, r in zip(questions, good, bad, strict=True)
        ]
    )


SHORT = {"reshaped sum", "reshaped hinge"}
"""Settings in which TRL's gradient is NaN once a completion's sum falls below -104 nats."""


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_gradient_and_metrics(setting, rows, models, chatml_tokenizer, tmp_path: Path):
    trl = pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")
    options, model = SETTINGS[setting], models("qwen2")
    if setting in SHORT:
        rows = rows.map(lambda row: {"chosen": row["chosen"][:5], "rejected": row["rejected"][:4]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and its libraries', not ours
        args = trl.CPOConfig(**options_of_both(tmp_path / "trl"), **options)
        theirs, their_log = one_step(trl.CPOTrainer, args, model, chatml_tokenizer, rows)
    args = CPOConfig(**options_of_both(tmp_path / "ours"), **options)
    ours, our_log = one_step(CPOTrainer, args, model, chatml_tokenizer, rows)
    assert all(torch.isfinite(g).all() for g in theirs.values())
    assert distance(theirs, ours) <= 1e-5
    names = [name for name in METRICS if not (name == "nll_loss" and setting_has_no_nll(options))]
    for name in ("loss", "grad_norm", *names):
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-5, abs=1e-5), name


def setting_has_no_nll(options: dict[str, Any]) -> bool:
    """Where cpo_alpha is 0 TRL logs an NLL of 0; ours stays the NLL."""
    return options.get("cpo_alpha") == 0.0 or options.get("loss_type") == "alphapo"
