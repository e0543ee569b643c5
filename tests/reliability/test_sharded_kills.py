"""Law 4 under an engine that shards: a rank that is killed costs nothing but time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from counterpoint.checkpoint.consolidate import consolidate
from counterpoint.checkpoint.folder import checkpoints
from counterpoint.checkpoint.manifest import verify
from tests.reliability.sharded_kills import killed_until_done, unbroken
from tests.reliability.trials import trials

RANK_0_WHILE_SAVING = 3
"""The seed with which rank 0 is killed first, while its second checkpoint is written."""


@pytest.mark.slow
def test_a_run_by_shard_whose_ranks_are_killed_ends_as_one_that_nobody_hit(tmp_path: Path):
    whole = tmp_path / "whole"
    nobody = unbroken(whole, "tied")
    assert [path.name for path in checkpoints(whole)] == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]
    listed = verify(whole / "checkpoint-8").files
    parts = {name for name in listed if "/shard-" in name}
    assert {name[: name.index("-model-")] for name in parts} == {
        f"{kind}/shard-0000{rank}" for kind in ("model", "optimizer") for rank in (1, 2)
    }
    # the model at the end is that of the last checkpoint, and plain transformers opens it
    consolidate(whole / "checkpoint-8", listed, tmp_path / "again")
    final = (whole / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == final
    assert json.loads((whole / "config.json").read_text()).get("distributed_config") is None
    opened = AutoModelForCausalLM.from_pretrained(whole)
    saved = load_file(whole / "model.safetensors")
    assert all(torch.equal(opened.state_dict()[name], one) for name, one in saved.items())
    draw, most = random.Random(RANK_0_WHILE_SAVING), trials(1, 8)
    deaths = killed_until_done(tmp_path / "run", nobody, "tied", draw, most=most)
    assert deaths.wrong == []
    assert deaths.kills >= 1
