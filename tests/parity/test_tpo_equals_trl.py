"""Compatibility: on one micro-batch the loss and gradients of TRL 1.16's TPO are ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from counterpoint import CPOConfig, CPOTrainer
from tests.parity.one_micro_batch import one_step, options_of_both
from tests.steps import distance

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "TPO": ({}, {"loss_type": "tpo", "beta": 0.01}),
    "TPO, another weight": (
        {"beta": 0.3, "tpo_alpha": 0.4, "label_smoothing": 0.1},
        {"loss_type": "tpo", "beta": 0.3, "cpo_alpha": 0.4, "label_smoothing": 0.1},
    ),
    "TPO-L": (
        {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 1.6},
        {"loss_type": "tpo_l", "beta": 2.0, "simpo_gamma": 1.6},
    ),
    "without the third": (
        {"tpo_alpha": 0.0, "beta": 0.1},
        {"loss_type": "tpo", "cpo_alpha": 0.0, "beta": 0.1},
    ),
}


@pytest.fixture(scope="module")
def rows() -> Dataset:
    questions = ["What is two and two?", "Name a colour.", "Where is the sun?", "Say hello."]
    good = [" It is four.", " Blue is one.", " In the sky, far away.", " Hello there, friend."]
    bad = [" Five.", " I do not know any colours at all.", " Here.", " No."]
    gold = [" Two and two is four.", " Blue.", " It is up in the sky.", " Hello!"]
    names = ("prompt", "chosen", "rejected", "reference")
    rows = zip(questions, good, bad, gold, strict=True)
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradient(
    setting: str, rows: Dataset, models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    theirs_alone, ours_alone = SETTINGS[setting]
    model = models("qwen2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and its libraries', not ours
        tpo = pytest.importorskip("trl.experimental.tpo", reason="TRL is not installed")
        theirs, their_log = one_step(
            tpo.TPOTrainer,
            tpo.TPOConfig(**options_of_both(tmp_path / "trl"), **theirs_alone),
            model,
            chatml_tokenizer,
            rows,
        )
    ours, our_log = one_step(
        CPOTrainer,
        CPOConfig(**options_of_both(tmp_path / "ours"), **ours_alone),
        model,
        chatml_tokenizer,
        rows,
    )
    assert all(torch.isfinite(gradient).all() for gradient in theirs.values())
    assert distance(theirs, ours) <= 1e-5
    for name in ("loss", "grad_norm"):
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-5, abs=1e-5), name
