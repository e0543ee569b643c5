"""Tokens that are read and not trained: value and gradient against the slow truth, in any split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from datasets import Dataset

from tests.invariance.test_a_step_is_a_set import SPLITS
from tests.reference.naive import completion_logps, step_loss, trained
from tests.steps import OBJECTIVES, distance, random_pairs, train_watched

SIDES = ("chosen", "rejected")
REFERENCE = {
    "sigmoid": ("sigmoid", {"beta": 0.1}, 1.0),
    "sigmoid, paper's NLL": ("sigmoid", {"beta": 0.1, "nll": "sequence_sum"}, 1.0),
    "cpo-simpo": ("simpo", {"beta": 2.0, "gamma": 1.0}, 1.0),
}
"""Objectives that read sums and means over tokens, as the reference names them."""


def spoken_pairs(count: int) -> Dataset:
    """Random pairs; in most completions one or two stretches are given, and never all of it."""
    rng = random.Random(7)

    def spans(tokens: int) -> list[int]:
        edges = sorted(rng.sample(range(tokens + 1), min(rng.choice([0, 2, 2, 4]), tokens + 1)))
        edges = edges[: len(edges) // 2 * 2]
        return [] if sum(edges[1::2]) - sum(edges[::2]) == tokens else edges

    return Dataset.from_list(
        [
            {**row, **{f"{side}_given": spans(len(row[f"{side}_ids"])) for side in SIDES}}
            for row in random_pairs(count, seed=5)
        ]
    )


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("objective", REFERENCE)
def test_value_and_gradient_in_every_split_are_those_of_trained_tokens_alone(
    objective: str, layout: str, models, chatml_tokenizer, tmp_path: Path
) -> None:
    pairs = spoken_pairs(8)
    assert sum(map(len, pairs["chosen_given"])) > 4
    truth_model = models("phi").double()
    kind, o, alpha = REFERENCE[objective]
    truth = step_loss(truth_model, list(pairs), kind, o, alpha)
    truth.backward()
    gradient = {n: p.grad for n, p in truth_model.named_parameters() if p.grad is not None}
    for micro_batch, accumulation in SPLITS:
        steps, trainer = train_watched(
            models("phi").double(),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
            layout=layout,
            **OBJECTIVES[objective],
        )
        found = trainer.state.log_history[0]["loss"]
        assert abs(found - truth.item()) <= 1e-12 * abs(truth.item())
        assert distance(gradient, steps[0]) <= 1e-12
        assert trainer._assembly().layout == layout


def test_a_token_budget_cuts_the_same_step(models, chatml_tokenizer, tmp_path: Path) -> None:
    pairs, pictures = spoken_pairs(8), []
    for budget in (None, 60):
        steps, _ = train_watched(
            models("qwen2_tied").double(),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=8,
            max_micro_batch_tokens=budget,
        )
        pictures += steps
    assert distance(*pictures) <= 1e-12


def test_an_evaluation_counts_trained_tokens_alone(
    models, chatml_tokenizer, tmp_path: Path
) -> None:
    pairs = spoken_pairs(6)
    model = models("phi").double()
    steps, trainer = train_watched(model, chatml_tokenizer, pairs, tmp_path, learning_rate=0.0)
    found = trainer.evaluate(pairs)
    total, tokens = 0.0, 0
    for row in pairs:
        each = completion_logps(model, row["prompt_ids"], row["chosen_ids"])
        kept = trained(each, row["chosen_given"])
        total, tokens = total - kept.sum().item(), tokens + len(kept)
    assert found["eval_nll_loss"] == pytest.approx(total / tokens, rel=1e-12)
    assert tokens < sum(map(len, pairs["chosen_ids"]))
    assert len(steps) == 1
