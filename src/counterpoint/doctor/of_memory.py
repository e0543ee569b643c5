"""Whether a step fits in memory, as the planner predicts it.

Steps that do not fit are cut smaller, by the trainer itself; so what counts is the longest pair
alone. Of a model that cannot be planned, or without pairs, the least that any step needs counts.

Not here: the prediction (``planner``), disks (``of_machine``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import Finding, find
from counterpoint.doctor.of_machine import bytes_of
from counterpoint.errors import ModelError
from counterpoint.planner.fitting import kept_of_pictures, plan_where_tight
from counterpoint.planner.machine import available_memory, show_bytes
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths


def of_memory(
    model: nn.Module, args: CPOConfig, *, peft_config: Any = None, lengths: Lengths | None = None
) -> Iterator[Finding]:
    """Whether a step fits.

    Args:
        model: what will be trained, loaded.
        args: the run's options.
        peft_config: the adapter that will be put on it, or None.
        lengths: of the training pairs; None if they are not known.
    """
    least = bytes_of(model, peft_config)
    # the weights are in the machine's memory already, from which they go to an accelerator
    room = available_memory(args.device) + (least.weights if args.device.type == "cpu" else 0)
    room = max(0, room - kept_of_pictures(args))
    if lengths is not None:
        left = room - least.weights
        try:
            planner = plan_where_tight(
                model, args, lengths, pairs=1, left=left, adapter=peft_config
            )
            if planner is not None:
                yield from _of_one_pair(planner, room)
            return
        except ModelError:
            pass  # said by the trainer, if it is more than the planner's own limit
    needed = least.weights + least.gradients + least.optimizer
    if needed > room:
        yield find(
            "CW504",
            f"weights {show_bytes(least.weights)} + gradients {show_bytes(least.gradients)} + "
            f"optimizer {show_bytes(least.optimizer)}, before a single pair, but "
            f"{show_bytes(room)} are there for them.",
            fix="lora_r: 16",
        )


def _of_one_pair(planner: Planner, room: int) -> Iterator[Finding]:
    found = planner.estimate(1, room)
    if found.fits:
        return
    activations = found.activations + found.head + found.passing
    remedies = list(planner.remedies(room))
    patches = f", {found.patches:,} of them patches of pictures" if found.patches else ""
    yield find(
        "CW504",
        f"a pair of {found.tokens:,} tokens{patches}, alone, needs {show_bytes(found.peak)} "
        f"(weights {show_bytes(found.weights)}, "
        f"gradients {show_bytes(found.gradients + found.buckets)}, "
        f"optimizer {show_bytes(found.optimizer)}, activations {show_bytes(activations)}), but "
        f"{show_bytes(room)} are there for it.",
        fix="\n".join(remedy.line for remedy in remedies),
    )
