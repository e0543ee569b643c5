"""A conversation about a picture: all is read, and the assistant's words alone are learnt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from counterpoint.data.options import Limits
from counterpoint.data.row_tokens import Piece, tokens_of_row
from tests.steps import distance, train_watched
from tests.vision_on_the_spot import encoded, seer, vision_encoder


def says(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def row_about(pictures: tuple[int, ...], name: str) -> dict[str, Any]:
    return {
        "prompt": [says(f"What is in {name}?", "user")],
        "chosen": [
            says("Let me look closer."),
            says("FOUND: a cat", "tool"),
            says(f"A cat is in {name}."),
            says("AND its colour?", "user"),
            says("Grey."),
        ],
        "rejected": [says("A dog."), says("ARE you sure?", "user"), says("I am.")],
        "images": [{"bytes": encoded(number), "path": None} for number in pictures],
    }


ROWS = [row_about(some, f"it {n}") for n, some in enumerate([(0,), (), (1, 3), (2,), (0,), ()])]


def text_of(pieces: tuple[Piece, ...], *, loss: bool) -> str:
    return "".join(piece.text for piece in pieces if piece.loss is loss)


# one token a mark that grows to many; a mark of three tokens; tiles with marks around them
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("turns", ["assistant", "last"])
def test_only_the_assistant_s_words_carry_loss(kind: str, turns: str) -> None:
    encoder = vision_encoder(seer(kind))
    end = "<|im_end|>"
    for number, row in enumerate(ROWS):
        found = tokens_of_row(row, number, encoder, Limits(max_length=600, train_turns=turns))
        assert len(found.pictures) == len(row["images"])
        first = f"Let me look closer.{end}A cat is in it {number}.{end}" * (turns == "assistant")
        assert text_of(found.chosen, loss=True) == f"{first}Grey.{end}"
        first = f"A dog.{end}" * (turns == "assistant")
        assert text_of(found.rejected, loss=True) == f"{first}I am.{end}"
        assert "FOUND: a cat" in text_of(found.chosen, loss=False)
        assert "ARE you sure?" in text_of(found.rejected, loss=False)
        # the picture stands in the prompt, whole, and in no completion
        assert not any(piece.loss for piece in found.prompt)


def test_a_step_is_the_same_however_it_is_cut_and_laid_out(tmp_path: Path) -> None:
    model, processor = seer("llava", torch.float64)
    pictures = []
    for size, layout in ((6, "shared"), (2, "shared"), (3, "padded"), (2, "pictures-twice")):
        steps, trainer = train_watched(
            copy.deepcopy(model),
            processor,
            Dataset.from_list(ROWS),
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=6 // size,
            max_length=600,
            layout=layout,
        )
        assert trainer._assembly().layout == layout
        pictures += steps
    assert distance(pictures[0], pictures[1]) <= 1e-12
    # between layouts the norm of Qwen2 rounds, in float32 whatever the weights
    assert max(distance(pictures[0], other) for other in pictures[2:]) <= 1e-6
    # and another one than where every turn is trained
    steps, _ = train_watched(
        copy.deepcopy(model),
        processor,
        Dataset.from_list(ROWS),
        tmp_path,
        per_device_train_batch_size=6,
        max_length=600,
        train_turns="all",
    )
    assert distance(pictures[0], steps[0]) > 1e-2
