"""Checks of the machine: folder, disk, device and precision.

Not here: memory (``of_memory``); packages, which loading asks for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import is_torch_bf16_gpu_available

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import Finding, find, from_error
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.engine.table import launched_for, refusal
from counterpoint.errors import SetupError
from counterpoint.runlog import RUN_FILE, check_writable
from counterpoint.tensor_parts import entries_of, tensor_bytes

LARGE = 1_000_000_000
"""Weights from which a model is too large for a CPU."""

MOMENTS = 8
"""Bytes of Adam's two moments of a weight, in float32."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Bytes:
    """What a run keeps, as bytes, activations not counted.

    Args:
        weights: of the whole model.
        gradients: of the weights that train.
        optimizer: Adam's two moments of those.
        saved: what a checkpoint writes of the weights.
    """

    weights: int
    gradients: int
    optimizer: int
    saved: int


def bytes_of(model: nn.Module, peft_config: Any = None) -> Bytes:
    """Count the bytes of a model under training.

    Args:
        model: before an adapter is put on.
        peft_config: the adapter; what trains then is so little that it is not counted.
    """
    weights = sum(map(tensor_bytes, model.parameters()))
    adapted = peft_config is not None or getattr(model, "peft_config", None) is not None
    trained = [w for w in model.parameters() if w.requires_grad and peft_config is None]
    gradients = sum(w.numel() * w.element_size() for w in trained)
    return Bytes(
        weights=weights,
        gradients=gradients,
        optimizer=MOMENTS * sum(w.numel() for w in trained),
        saved=gradients if adapted else weights,
    )


def of_machine(
    args: CPOConfig,
    *,
    model: Any = None,
    peft_config: Any = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> Iterator[Finding]:
    """Whether the machine can do the run.

    Args:
        args: the run's options.
        model: what will be trained; None if there is none to measure.
        peft_config: the adapter that will be put on it, or None.
        steps: optimizer steps of the run; None if that is not known.
        overwrite: what the folder holds may be replaced.
    """
    yield from _folder(args, overwrite)
    yield from _engine(args)
    yield _told(args)
    yield from _precision(args)
    if not isinstance(model, nn.Module):
        return
    needed = bytes_of(model, peft_config)
    weights = sum(map(entries_of, model.parameters()))
    if args.device.type == "cpu" and weights >= LARGE:
        yield find("CW502", f"{weights:,} weights on a CPU.")
    yield from _disk(args, needed, steps)


def free_disk(folder: str | Path) -> int:
    """Bytes left on the disk of a folder, which need not exist."""
    path = Path(folder).absolute()
    existing = next(part for part in (path, *path.parents) if part.exists())
    return shutil.disk_usage(existing).free


def _folder(args: CPOConfig, overwrite: bool) -> Iterator[Finding]:
    try:
        check_writable(args.output_dir)
    except SetupError as error:
        yield from_error(error)
        return
    if (
        not (overwrite or args.resume_from_checkpoint)
        and (Path(args.output_dir) / RUN_FILE).is_file()
    ):
        yield find(
            "CP504",
            f"{args.output_dir} holds a run already.",
            fix=f"output_dir: {args.output_dir}-2",
        )


def _engine(args: CPOConfig) -> Iterator[Finding]:
    """Whether an engine runs what the launcher will set up."""
    reason = refusal(launched_for(args.distributed_state.distributed_type.value))
    if reason and not shards_at_load(args):
        yield find("CP105", reason)


def _told(args: CPOConfig) -> Finding:
    kind = args.device.type
    name = torch.cuda.get_device_name(args.device) if kind == "cuda" else kind
    cores = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    return find("CN501", f"device {name}{cores}; matrix products in {precision}.")


def _precision(args: CPOConfig) -> Iterator[Finding]:
    on_cpu = args.device.type == "cpu"
    if args.fp16 and (on_cpu or is_torch_bf16_gpu_available()):
        where = "a CPU" if on_cpu else "a device that has bfloat16"
        yield find("CW501", f"fp16 on {where}.", fix="fp16: false")
    if args.bf16 and on_cpu and not _cpu_has_bf16():
        yield find("CW501", "bf16 on a CPU without instructions for it.", fix="bf16: false")


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True  # not known, so nothing is said
    return any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16 ", "avx_ne_convert"))


def _disk(args: CPOConfig, needed: Bytes, steps: int | None) -> Iterator[Finding]:
    one = needed.saved + (0 if args.save_only_model else needed.optimizer)
    kept = _checkpoints(args, steps)
    wanted = kept * one + needed.saved
    free = free_disk(args.output_dir)
    if wanted > free:
        yield find(
            "CW503",
            f"{kept} checkpoints of {one / GIB:.3g} GiB and the model of "
            f"{needed.saved / GIB:.3g} GiB, but {free / GIB:.3g} GiB are free.",
            fix="save_total_limit: 1\nsave_only_model: true",
        )


def _checkpoints(args: CPOConfig, steps: int | None) -> int:
    """Checkpoints that lie on the disk at one time."""
    strategy = args.save_strategy
    made: int
    if strategy == "no":
        return 0
    if strategy == "epoch":
        made = max(1, round(args.num_train_epochs))
    elif steps is None or args.save_steps < 1:
        made = 1 if steps is None else max(1, round(1 / args.save_steps))
    else:
        made = max(1, int(steps // args.save_steps))
    # the new one is written before the oldest is removed
    limit: int | None = args.save_total_limit
    return min(made, limit + 1) if limit else made
