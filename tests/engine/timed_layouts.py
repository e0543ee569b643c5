"""Ranks that time layouts before their first step, on a clock of which each rank has its own.

What ``layout="auto"`` does on an accelerator, on CPUs; for the scripts that are a rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedTokenizerFast

from counterpoint.forward.layouts import Padded, Shared
from counterpoint.step import layout_trial
from tests.engine.doors import loaded_in_shards, taken_for_accelerators

STEP_PAIRS = 8

FASTER = {
    # on rank 1 alone, and it is the slowest rank's time that counts
    "padded": ({"shared": 1.0, "padded": 2.0}, {"shared": 5.0, "padded": 1.0}),
    "shared": ({"shared": 2.0, "padded": 1.0}, {"shared": 2.0, "padded": 3.0}),
}
"""The layout that ranks should choose -> seconds of a micro-batch in each layout, by rank."""


@contextmanager
def clocked(costs: dict[str, float]) -> Iterator[None]:
    """Within it layouts are timed, and time passes with each micro-batch of a layout only."""
    time = [0.0]

    def now() -> float:
        return time[0]

    def watched(kind: type) -> Callable[..., Any]:
        running = kind.running

        @contextmanager
        def counted(layout: Any, model: Any) -> Iterator[None]:
            time[0] += costs[layout.name]
            with running(layout, model):
                yield

        return counted

    with (
        mock.patch.object(layout_trial, "now", now),
        mock.patch.object(Shared, "is_timed", return_value=True),
        mock.patch.object(Padded, "running", watched(Padded)),
        mock.patch.object(Shared, "running", watched(Shared)),
    ):
        yield


def timed(faster: str, door: str, folder: Path) -> dict[str, Any]:
    """Train with the layout that the clock finds, and with the same one by its name.

    Args:
        faster: a row of ``FASTER``.
        door: how the model comes to the engine: "load", "accelerate", or "whole" for DDP.
        folder: for both runs.

    Returns:
        What this rank has found, and whether all weights are equal in the end, to the bit.
    """
    with clocked(FASTER[faster][int(os.environ["RANK"])]):
        auto = _trained("auto", door, folder / "auto")
    named = _trained(faster, door, folder / "named")
    found = auto._assembly().state_dict()
    parts = zip(_weights(auto), _weights(named), strict=True)
    return {
        "engine": auto.engine.name,
        "layout": found["layout"],
        "seconds": found["times"]["seconds"],
        "equal": all(torch.equal(one, other) for one, other in parts),
    }


def _weights(trainer: Any) -> list[torch.Tensor]:
    trainer.engine.at_rest(trainer.model)
    return [trainer.engine.own_part(weight).detach() for weight in trainer.model.parameters()]


def _trained(layout: str, door: str, folder: Path) -> Any:
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs, train_watched
    from tests.tokenizers_on_the_spot import byte_level

    model: Any = make_model("qwen2_tied")
    if door == "load":
        model = loaded_in_shards(model, folder / "model")
    with taken_for_accelerators() if door == "accelerate" else nullcontext():
        _, trainer = train_watched(
            model,
            PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>"),
            random_pairs(2 * STEP_PAIRS),
            folder / "run",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=STEP_PAIRS // (2 * int(os.environ["WORLD_SIZE"])),
            # in shards ranks meet in every pass, also where one has more of them
            max_micro_batch_tokens=None if door == "whole" else 60 + 60 * int(os.environ["RANK"]),
            ddp_backend="gloo",
            monitor_steps=0,
            layout=layout,
            fsdp=door == "accelerate" or None,
        )
    return trainer
