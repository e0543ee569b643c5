"""Compatibility: on one micro-batch the loss, gradients and metrics of TRL 1.16's DPO are ours."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.objectives import LOSSES
from tests.parity.one_micro_batch import one_step, options_of_both
from tests.steps import distance

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "another reference": {"reference": 4},
    "another beta": {"reference": 4, "beta": 0.5},
    "with the NLL": {"reference": 4, "rpo_alpha": 0.7},
    "hinge": {"reference": 4, "loss_type": "hinge"},
    "ipo": {"reference": 4, "loss_type": "ipo"},
    "APO-zero": {"reference": 4, "loss_type": "apo_zero"},
    "APO-zero with the NLL": {"reference": 4, "loss_type": "apo_zero", "rpo_alpha": 0.7},
    "APO-zero, shorter": {"reference": 4, "loss_type": "apo_zero", "ld_alpha": 0.3},
    "APO-zero, weighed": {"reference": 4, "loss_type": "apo_zero", "use_weighting": True},
    "APO-down": {"reference": 4, "loss_type": "apo_down", "beta": 0.5},
    "APO-down, as it begins": {"loss_type": "apo_down"},
    "NCA": {"reference": 4, "loss_type": "nca_pair"},
    "NCA, another beta": {"reference": 4, "loss_type": "nca_pair", "beta": 0.5},
    "shorter": {"reference": 4, "ld_alpha": 0.3},
    "hinge, cut to the shorter": {"reference": 4, "loss_type": "hinge", "ld_alpha": 0.0},
    "weighed": {"reference": 4, "use_weighting": True},
    "weighed and shorter": {"reference": 4, "use_weighting": True, "ld_alpha": 0.5},
}
OURS = {row.names["DPOTrainer"]: row.name for row in LOSSES.values() if "DPOTrainer" in row.names}
"""Losses of TRL's DPO that are here, by their names there."""

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_gradient_and_metrics(
    setting: str, rows: Dataset, models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    options, model = dict(SETTINGS[setting]), models("qwen2")
    seed, share = options.pop("reference", None), options.pop("rpo_alpha", None)
    reference = None if seed is None else models("qwen2", seed=seed)
    kind = options.pop("loss_type", "sigmoid")
    theirs_alone: dict[str, Any] = {"loss_type": [kind]}
    if share is not None:
        theirs_alone = {"loss_type": [kind, "sft"], "loss_weights": [1.0, share]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and its libraries', not ours
        theirs, their_log = one_step(
            trl.DPOTrainer,
            trl.DPOConfig(**options_of_both(tmp_path / "trl"), **options, **theirs_alone),
            model,
            chatml_tokenizer,
            rows,
            ref_model=copy.deepcopy(model if reference is None else reference),
        )
    ours_alone: dict[str, Any] = {"loss_type": OURS[kind], "rpo_alpha": share}
    if reference is not None:
        reference.save_pretrained(tmp_path / "reference")
        ours_alone["reference"] = str(tmp_path / "reference")
    ours, our_log = one_step(
        CPOTrainer,
        CPOConfig(**options_of_both(tmp_path / "ours"), **options, **ours_alone),
        model,
        chatml_tokenizer,
        rows,
    )
    assert all(torch.isfinite(gradient).all() for gradient in theirs.values())
    assert distance(theirs, ours) <= 1e-5
    if "use_weighting" in options:  # else nothing would be weighed
        assert our_log["policy_weights"] < 0.99
    # of IPO, whose loss reads means, theirs show sums
    for name in ("loss", "grad_norm", *(() if kind == "ipo" else METRICS)):
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-5, abs=1e-5), name
