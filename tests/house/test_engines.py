"""Ranks meet in one module, and engines and kernels are named in their tables alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from counterpoint.forward.kernels import ATTENTION_KERNELS, HEAD_KERNELS

SOURCE = Path(__file__).parents[2] / "src" / "counterpoint"
MEETINGS = {
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast_object_list",
    "destroy_process_group",
    "gather_for_metrics",
    "get_world_size",
    "init_process_group",
    "is_initialized",
    "monitored_barrier",
    "pad_across_processes",
    "reduce_scatter",
    "wait_for_everyone",
}
KERNELS = {*HEAD_KERNELS, *ATTENTION_KERNELS} - {"logits"}
"""Logits are the name of a metric too."""

PARTS = "torch.distributed.checkpoint."

OF_ACCELERATE = {"broadcast", "gather", "gather_object", "reduce"}
"""Other things have methods of these names; of an accelerator they are exchanges."""


def meetings(tree: ast.Module) -> list[str]:
    """What a module names of the exchanges between ranks."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("torch.distributed")]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # parts of a checkpoint are read and written by each rank alone (checkpoint/shards.py)
            of_torch = module.startswith("torch.distributed") and not module.startswith(PARTS)
            names = {a.name for a in node.names}
            found += names if of_torch else names & MEETINGS
            found += names & {"distributed"} if node.module == "torch" else ()
        elif isinstance(node, ast.Attribute):
            holder = ast.unparse(node.value)
            accelerates = holder.endswith("accelerator") and node.attr in OF_ACCELERATE
            if node.attr in MEETINGS or accelerates or holder == "torch.distributed":
                found.append(f"{holder}.{node.attr}")
    return found


def test_only_one_module_names_the_exchanges_between_ranks() -> None:
    naming = {
        str(path.relative_to(SOURCE)): found
        for path in sorted(SOURCE.rglob("*.py"))
        if (found := meetings(ast.parse(path.read_text(encoding="utf-8"))))
    }
    # an engine that shards names what it shards with
    assert naming.keys() == {"ranks.py", "engine/at_load.py", "engine/fsdp2.py"}, naming
    kept = {"FSDPModule", "DTensor", "Partial", "Replicate", "Shard"}
    assert set(naming["engine/fsdp2.py"]) <= kept
    # each rank takes its own part of what all have computed: nothing is sent
    assert set(naming["engine/at_load.py"]) == {"DTensor", "distribute_tensor"}
    assert "src_data_rank=None" in (SOURCE / "engine/at_load.py").read_text(encoding="utf-8")


def test_parts_of_a_checkpoint_are_written_by_each_rank_alone() -> None:
    naming = {
        str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*.py"))
        if PARTS in path.read_text(encoding="utf-8")
    }
    assert naming.keys() == {"checkpoint/shards.py"}
    calls = [
        node
        for node in ast.walk(ast.parse(naming["checkpoint/shards.py"]))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("load", "save")
    ]
    assert len(calls) == 2
    for call in calls:
        told = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert told["no_dist"] == "True"


def test_neither_the_step_nor_the_trainer_names_an_engine() -> None:
    naming = [
        f"{path.relative_to(SOURCE)}: {name}"
        for room in ("step", "trainer", "forward", "checkpoint")
        for path in (SOURCE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (getattr(node, "id", None), getattr(node, "attr", None))
        if isinstance(name, str)
        and (name in ("Plain", "Ddp", "Fsdp2", "no_sync") or "ddp" in name.lower())
    ]
    assert naming == []


def test_a_kernel_is_known_by_its_name_in_its_table_alone() -> None:
    naming = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in KERNELS
    }
    assert naming == {"forward/kernels.py"}


@pytest.mark.parametrize(
    "line",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "torch.distributed.is_initialized()",
        "self.accelerator.gather(seen)",
        "accelerator.wait_for_everyone()",
        "group.all_reduce(sums)",
    ],
)
def test_every_way_to_spell_an_exchange_is_seen(line: str) -> None:
    assert meetings(ast.parse(line))


def test_methods_of_tensors_are_not_taken_for_exchanges() -> None:
    assert meetings(ast.parse("logits.gather(1, ids); functools.reduce(f, xs)")) == []


def test_only_one_module_asks_a_launcher_how_many_ranks_there_are() -> None:
    asked = {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    asking = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in asked
    }
    assert asking == {"ranks.py"}
