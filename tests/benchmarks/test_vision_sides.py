"""Both sides of the benchmark about pictures train the same pairs by the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import step
import torch
import vision

pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL warns of itself and of others

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
WORK: dict[str, Any] = {
    **vision.COMMON,
    "side": 56,
    "said": 8,
    "pairs": 2,
    "steps": 1,
    "text": {
        **SMALL,
        "head_dim": 16,
        "rope_parameters": {**vision.TEXT["rope_parameters"], "mrope_section": [2, 3, 3]},
    },
    "tower": {**SMALL, "num_attention_heads": 2},
    "options": {"max_length": 256, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("frozen", [(), vision.FROZEN], ids=["all trains", "frozen tower"])
def test_both_sides_move_every_weight_alike(
    frozen: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    work = {**WORK, "freeze": frozen}
    begun = {
        name: weight.detach().clone()
        for name, weight in vision.model_of(work, vision.processor().tokenizer).named_parameters()
    }
    moved = {}
    sides = [side for side in vision.SIDES if side != vision.KEPT or frozen]
    for side in sides:
        trainer = vision.trainer_of(side, work, tmp_path / side)
        trainer.train()
        moved[side] = {
            name: weight.detach() - begun[name] for name, weight in trainer.model.named_parameters()
        }
    whole = torch.stack([way.norm() for way in moved["trl"].values()]).norm()
    assert whole > 0.1
    for name, way in moved["trl"].items():
        for side in sides:
            assert (moved[side][name] - way).norm() <= 1e-5 * whole, (side, name)
        trains = not frozen or not name.startswith(("model.visual", "model.projector"))
        assert bool(way.norm() > 0) is trains, name


def test_pictures_and_words_are_those_of_a_seed() -> None:
    work = vision.work_of("snippets")
    rows, again = vision.rows_of(work), vision.rows_of(work)
    assert rows == again
    assert len(rows) == vision.PAIRS * (vision.STEPS + step.WARM_UP)
    assert len({row["images"][0]["bytes"] for row in rows}) == len(rows)
    frozen = vision.rows_of(vision.work_of("snippets-frozen"))
    assert len(frozen) < vision.PAIRS * (vision.STEPS + step.WARM_UP)  # they come again
