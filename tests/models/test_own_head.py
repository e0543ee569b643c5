"""A model that is made from its configuration has as many weights as one that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from counterpoint.models.own_head import part_head
from tests.translators_on_the_spot import translator


def entries(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def without_data(folder: Path) -> Any:
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5", "nllb", "marian"])
@pytest.mark.parametrize("how", ["tied", "own", "own, in several files", "the same twice"])
def test_a_plan_counts_the_head_that_the_files_hold(kind: str, how: str, tmp_path: Path) -> None:
    model, _ = translator(kind)
    head = model.get_output_embeddings()
    if how != "tied":
        more = torch.randn_like(head.weight) if how.startswith("own") else head.weight.detach()
        head.weight = torch.nn.Parameter(more.clone())
    size = "20KB" if how.endswith("files") else "1GB"
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len([*tmp_path.glob("*.safetensors")]) > 1) == (size == "20KB")
    loaded, made = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), without_data(tmp_path)
    own = loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight
    assert own == how.startswith("own")
    assert part_head(made, tmp_path, {}) == own
    assert entries(made) == entries(loaded)


def test_where_no_weights_are_the_configuration_as_written_says_it(tmp_path: Path) -> None:
    """As of a hub id, of which a plan has config.json alone."""
    model, _ = translator("mt5")
    model.config.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert not part_head(without_data(tmp_path), tmp_path, described)
    made = without_data(tmp_path)
    assert part_head(made, None, {**described, "tie_word_embeddings": False})
    head = model.get_output_embeddings().weight.numel()
    assert entries(made) == entries(model) + head
