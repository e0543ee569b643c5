"""A run that was given no budget gets one where it would not fit, and nowhere else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from counterpoint.planner import fitting
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths
from tests.steps import distance, random_pairs, train_watched

PAIRS = 8


def memory_lines(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("memory")]


def budget_of(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())["micro_batch_tokens"]["train"]


@pytest.fixture
def train(models, chatml_tokenizer, tmp_path: Path):
    def run(**options: Any):
        model = models("qwen2_tied", hidden_size=64, num_hidden_layers=4)
        pairs = random_pairs(PAIRS)
        return train_watched(
            model,
            chatml_tokenizer,
            pairs,
            tmp_path,
            # a rate that moves nothing would be an alarm
            **{
                "per_device_train_batch_size": PAIRS,
                "learning_rate": 1e-30,
                "monitor_steps": 0,
                **options,
            },
        )

    return run


def left_for(trainer: Any, pairs: int) -> int:
    """Memory in which so many of the pairs just fit, as the planner sees it."""
    planner = Planner(trainer.model, trainer.args, Lengths.of(trainer.train_dataset))
    needed = planner.estimate(pairs, 0, accumulates=pairs < PAIRS)
    return round((needed.peak - needed.weights) / fitting.SHARE) + 1


def test_a_small_run_is_left_alone_without_a_rehearsal(train, tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setattr(fitting, "Planner", None)
    with caplog.at_level(logging.INFO, "counterpoint"):
        train()
    assert budget_of(tmp_path) is None
    assert memory_lines(caplog) == []


def test_what_is_predicted_to_fit_stays_together(train, tmp_path: Path, caplog, monkeypatch):
    _, trainer = train()
    left = left_for(trainer, PAIRS)
    monkeypatch.setattr(fitting, "available_memory", lambda device: left)
    with caplog.at_level(logging.INFO, "counterpoint"):
        train()
    assert budget_of(tmp_path) is None
    (line,) = memory_lines(caplog)
    assert line.endswith("they fit")


def test_what_would_not_fit_is_cut_and_the_step_is_the_same(
    train, tmp_path: Path, caplog, monkeypatch
):
    whole, trainer = train()
    left = left_for(trainer, 2)
    monkeypatch.setattr(fitting, "available_memory", lambda device: left)
    with caplog.at_level(logging.INFO, "counterpoint"):
        cut, again = train()
    budget = budget_of(tmp_path)
    lengths = Lengths.of(trainer.train_dataset)
    assert lengths.heaviest(1, "shared") <= budget < lengths.heaviest(PAIRS, "shared")
    (line,) = memory_lines(caplog)
    assert f"micro-batches are cut to {budget} tokens" in line
    for one, other in zip(whole, cut, strict=True):
        assert distance(one, other) <= 1e-6
    assert again.runner.budget.tokens == budget


def test_a_pair_that_is_not_predicted_to_fit_is_tried_alone_with_a_warning(
    train, tmp_path: Path, caplog, monkeypatch
):
    monkeypatch.setattr(fitting, "available_memory", lambda device: 1)
    train()
    pairs = Lengths.of(random_pairs(PAIRS))
    assert budget_of(tmp_path) == pairs.heaviest(1, "shared")
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "not even the longest pair" in line


def test_a_budget_that_is_given_is_kept(train, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fitting, "available_memory", lambda device: 1)
    train(max_micro_batch_tokens=77)
    assert budget_of(tmp_path) == 77
