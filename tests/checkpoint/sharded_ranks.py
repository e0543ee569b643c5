"""One of several ranks that save and load models by shard. A script of test_sharded.

Each case is a model that ``fully_shard`` cuts and one step of AdamW has moved. What is written down
of it is whole, from torch's own gathering, so that nothing here is held against itself.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from counterpoint import SetupError, ranks
from counterpoint.checkpoint import shards
from counterpoint.checkpoint.adapted import base_identity
from counterpoint.checkpoint.consolidate import save_sharded_model
from counterpoint.checkpoint.folder import publish, staging
from counterpoint.checkpoint.manifest import File, seal
from counterpoint.checkpoint.optimizer import load_named_state, named_state
from counterpoint.checkpoint.resumption import find_checkpoint
from counterpoint.checkpoint.saving import save_checkpoint, write_model
from counterpoint.checkpoint.sharded import (
    load_saved,
    read_optimizer,
    saved_tensors,
    write_shards,
)
from tests.checkpoint.sharded_runs import QUICK, run_whole_and_stopped
from tests.models_on_the_spot import make_model

CASES: dict[str, dict[str, Any]] = {
    "tied": {"kind": "qwen2", "vocab_size": 67, "tie_word_embeddings": True},
    "uneven, in bfloat16": {"kind": "llama", "vocab_size": 67, "bf16": True},
    "experts": {"kind": "mixtral", "vocab_size": 66},
    "an adapter": {"kind": "qwen2", "vocab_size": 67, "adapter": True},
}
"""67 rows of a vocabulary over two, three and four ranks: uneven on each."""


def made(
    kind: str, *, bf16: bool = False, adapter: bool = False, seed: int = 0, **more: Any
) -> Any:
    """A case's model, whole; of another seed another one."""
    base = make_model(kind, **more)
    if bf16:  # angles of rotary positions stay in float32, as where a model is loaded
        for weight in base.parameters():
            weight.data = weight.data.to(torch.bfloat16)
    torch.manual_seed(seed)
    if adapter:
        config = LoraConfig(
            r=3,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["lm_head"],
            task_type="CAUSAL_LM",
        )
        base = get_peft_model(base, config)
        base.get_submodule("base_model.model.model.norm").requires_grad_(True)  # beside the adapter
    with torch.no_grad():
        for weight in base.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape).to(weight.dtype) * 0.1)
    return base


def sharded(model: Any) -> Any:
    """The same, cut over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (ranks.count(),))
    layers = [one for one in model.modules() if type(one).__name__.endswith("DecoderLayer")]
    for one in layers:
        fully_shard(one, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what trains."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """One step, on data that each rank has its own of."""
    ids = torch.arange(8).reshape(2, 4) + 5 * ranks.rank()
    model(input_ids=ids).logits.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(model: Any, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Weights and moments, gathered by torch; every rank calls it."""
    for module in model.modules():
        getattr(module, "reshard", lambda: None)()

    def full(tensor: Any) -> Any:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    state = {} if optimizer is None else named_state(optimizer, model)["state"]
    return {
        "weights": {n: full(t).clone() for n, t in saved_tensors(model).items()},
        "moments": {f"{n}.{k}": full(t) for n, kept in state.items() for k, t in kept.items()},
    }


def saved(target: Path, model: Any, optimizer: Any) -> None:
    """A checkpoint as a trainer writes it."""
    for module in model.modules():
        getattr(module, "reshard", lambda: None)()

    def write(staged: Path) -> None:
        write_shards(staged, model, named_state(optimizer, model))
        if ranks.rank() == 0:
            write_model(staged, model, None, {}, weights=False)

    def seal_and_publish(target: Path, files: dict[str, File]) -> None:
        seal(staging(target), step=1, resumable=True, fingerprint={}, files=files)
        publish(target)

    save_checkpoint(target, write, seal_and_publish, limit=None, keep=[])


def differs(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what two wholes do not have alike to the bit."""
    wrong = []
    for kind in ("weights", "moments"):
        wrong += sorted(one[kind].keys() ^ other[kind].keys())
        wrong += [
            name
            for name in one[kind].keys() & other[kind].keys()
            if one[kind][name].dtype != other[kind][name].dtype
            or not torch.equal(one[kind][name], other[kind][name])
        ]
    return wrong


def load_again(place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a fresh, sharded model and optimizer hold after loading a checkpoint."""
    folder, manifest = find_checkpoint(place.parent, place) or (place, None)
    assert manifest is not None
    model = sharded(made(**options, seed=9))
    optimizer = optimizer_of(model)
    load_saved(model, folder, manifest.files)
    load_named_state(optimizer, model, read_optimizer(folder, model, manifest.files))
    return whole(model, optimizer)


def save_all(folder: Path) -> None:
    """Save every case, and load it on as many ranks; then whole models, and a disk that is full."""
    for name, options in CASES.items():
        alone = base_identity(made(**options))
        model = sharded(made(**options))
        optimizer = optimizer_of(model)
        assert base_identity(model) == alone, name
        step(model, optimizer)
        place = folder / name / "checkpoint-1"
        saved(place, model, optimizer)
        expected = whole(model, optimizer)
        if ranks.rank() == 0:
            torch.save(expected, folder / f"{name}.pt")
        assert differs(load_again(place, options), expected) == [], name

        def write(parts: Path, model: Any = model) -> None:
            write_shards(parts, model, None)
            if ranks.rank() == 0:
                write_model(parts, model, None, {}, weights=False)

        save_sharded_model(folder / name / "final", write)
    (folder / f"full-{ranks.rank()}").write_text(
        _full_disk(folder / "full" / "checkpoint-2", model, optimizer)
    )


def _full_disk(target: Path, model: Any, optimizer: Any) -> str:
    """What a rank says when the second one's disk is full as it writes its shards."""
    saved(target.with_name("checkpoint-1"), model, optimizer)
    original = shards.save

    def full(*facts: Any, **more: Any) -> Any:
        if ranks.rank() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*facts, **more)

    shards.save = full
    try:
        saved(target, model, optimizer)
    except SetupError as error:
        return str(error)
    finally:
        shards.save = original
    return "saved"


def load_all(folder: Path) -> None:
    """Load every case on another number of ranks, and whole checkpoints too."""
    for name, options in CASES.items():
        expected = torch.load(folder / f"{name}.pt")
        found = load_again(folder / name / "checkpoint-1", options)
        assert differs(found, expected) == [], name
        found = load_again(folder / name / "whole" / "checkpoint-1", options)
        assert differs(found, expected) == [], f"{name}, whole"


def main(what: str, folder: Path) -> None:
    """Be one rank."""
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    ranks.leave_at_exit()
    {"save": save_all, "load": load_all}[what](folder)
    if what == "save":
        for name in QUICK:
            run_whole_and_stopped(name, folder / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
