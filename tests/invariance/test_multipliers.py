"""Law 1 for multipliers: they move by the step's set of pairs, whatever the cut and the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.invariance.ranks import HELD, multipliers
from tests.reliability.trials import TORTURE
from tests.small_memory import SmallMemory
from tests.steps import distance, random_pairs, train_watched

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)]
LIMIT = 1e-12
"""Relative, of a float64 model: some thousand roundings of 1e-16."""


def train(models, tokenizer, folder: Path, **options: Any):
    steps, trainer = train_watched(
        models("qwen2_tied").double(),
        tokenizer,
        random_pairs(24),
        folder,
        **{"constraints": HELD, **options},
    )
    return steps, multipliers(trainer.state.log_history)


CASES = [
    (name, normalized) for name in ("sigmoid", "simpo", "hinge", "repo") for normalized in (0, 1)
]
"""Objectives, and whether constraints are normalised; CI takes a means and a sum of either kind."""


@pytest.mark.parametrize(
    ("objective", "normalized"), CASES if TORTURE else [("sigmoid", 1), ("simpo", 0)]
)
def test_multipliers_do_not_depend_on_the_split(
    objective, normalized, models, chatml_tokenizer, tmp_path: Path
):
    seen = [
        train(
            models,
            chatml_tokenizer,
            tmp_path,
            loss_type=objective,
            constraint_normalization=bool(normalized),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=micro_batch,
        )
        for micro_batch, accumulation in SPLITS[:4]
    ]
    (first, numbers), others = seen[0], seen[1:]
    assert len(set(numbers)) > len(HELD)  # they do move
    for steps, found in others:
        assert found == pytest.approx(numbers, rel=LIMIT, abs=LIMIT)
        for one, other in zip(first, steps, strict=True):
            assert distance(one, other) <= LIMIT


def test_a_step_that_was_cut_again_moves_them_once(models, chatml_tokenizer, tmp_path: Path):
    common: dict[str, Any] = {"layout": "padded", "gradient_accumulation_steps": 1}
    _, numbers = train(models, chatml_tokenizer, tmp_path, per_device_train_batch_size=8, **common)
    model = models("qwen2_tied").double()
    memory = SmallMemory(model, 150, "backward")
    _, trainer = train_watched(
        model,
        chatml_tokenizer,
        random_pairs(24),
        tmp_path,
        constraints=HELD,
        per_device_train_batch_size=8,
        **common,
    )
    assert memory.failed
    assert multipliers(trainer.state.log_history) == pytest.approx(numbers, rel=LIMIT, abs=LIMIT)
