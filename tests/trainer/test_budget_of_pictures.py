"""Micro-batches about pictures are cut by tokens and patches, and anew where memory runs out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from counterpoint.data.batching import cut
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.step import assembly
from tests.small_memory import SmallMemory
from tests.steps import distance, train_watched
from tests.vision_on_the_spot import KINDS, ROWS, encoded, seen_pairs, seer, tower_of

DISTINCT = [*ROWS[:4], *ROWS[5:]]
"""Rows of which no two show the same picture: a budget counts a picture of two pairs twice."""

RAW = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "images": [{"bytes": encoded(number), "path": None} for number in pictures],
    }
    for pictures, question, chosen, rejected in DISTINCT
]


@contextmanager
def patches_seen(model: Any) -> Iterator[list[int]]:
    """While open, how many patches the tower makes is put into the list at each of its calls."""
    seen: list[int] = []
    kinds = nn.Conv2d | nn.Conv3d | nn.Linear
    first: Any = next(m for m in tower_of(model).modules() if isinstance(m, kinds))
    width = getattr(first, "out_channels", None) or first.out_features
    handle = first.register_forward_hook(
        lambda module, args, out: seen.append(out.numel() // width)
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", KINDS)
def test_a_micro_batch_costs_its_tokens_and_the_patches_that_the_tower_makes(kind: str) -> None:
    made = seer(kind)
    pairs = seen_pairs(made, DISTINCT)
    for layout, times in ((SHARED, 1), (PADDED, 1), (PICTURES_TWICE, 2)):
        batch = layout.collate(pairs)
        with layout.running(made[0]), patches_seen(made[0]) as seen, torch.no_grad():
            pair_forward(made[0], find_head(made[0]), batch)
        assert batch.cost == batch.input_ids.numel() + sum(seen)
        assert sum(seen) == times * sum(one.patches for pair in pairs for one in pair.seen)
        most = max(layout.tokens([pair]) for pair in pairs) + 30
        parts = cut(pairs, most_pairs=1, most_tokens=most, tokens_of=layout.tokens)
        assert len(parts) > 1
        assert all(layout.tokens(part) <= most for part in parts)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["llava", "paddleocr_vl"])
def test_a_step_about_pictures_that_did_not_fit_is_done_again_in_smaller_micro_batches(
    kind: str,
    where: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(model: Any, processor: Any) -> Any:
        steps, trainer = train_watched(
            model,
            processor,
            Dataset.from_list(RAW),
            tmp_path,
            per_device_train_batch_size=len(RAW),
            learning_rate=1e-30,
            monitor_steps=0,  # nothing is to move here
            max_length=200,
            report_to="none",
        )
        assert trainer._assembly().layout == SHARED.name
        return steps

    (calm,) = train(*seer(kind))
    made = seer(kind)
    pairs = seen_pairs(made, DISTINCT)
    fits = max(SHARED.tokens([pair]) for pair in pairs) + 30
    memory = SmallMemory(made[0], fits, where)
    proof = assembly.layouts_disagree

    def with_room(*facts: Any) -> str | None:
        # of the layout: it looks twice at the pictures, and is not what is tried here
        memory.tokens = SHARED.tokens(pairs) * 4
        reason = proof(*facts)
        memory.tokens = fits
        return reason

    monkeypatch.setattr(assembly, "layouts_disagree", with_room)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "counterpoint"):
        (found,) = train(*made)
    assert memory.failed
    assert memory.failed[0] == SHARED.tokens(pairs)
    assert distance(calm, found) <= 1e-6
    (line,) = [r.getMessage() for r in caplog.records if "did not fit in memory" in r.getMessage()]
    budget = json.loads((tmp_path / "run.json").read_text())["micro_batch_tokens"]["train"]
    assert budget == memory.failed[-1] // 2
    assert f"at most {budget} tokens" in line
