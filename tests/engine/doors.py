"""The two doors through which a model comes to FSDP2 sharded, as far as gloo on CPUs has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate import PartialState
from accelerate.utils import DistributedType

from counterpoint import ranks
from counterpoint.engine.at_load import parts_filled
from counterpoint.trainer.transformers_seams import Seams


def loaded_in_shards(model: Any, folder: Path, replicas: int = 1) -> Any:
    """The same model, of which each rank reads its own part."""
    from transformers.distributed import DistributedConfig

    ranks.first_does(lambda: model.save_pretrained(folder))
    size = ranks.count() // replicas
    config = DistributedConfig(fsdp_size=size, dp_replicate_size=replicas)
    experts = {"experts_implementation": "eager"} if hasattr(model.config, "num_experts") else {}
    with parts_filled(shards=True):
        return type(model).from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            distributed_config=config,
            **experts,
        )


@contextmanager
def taken_for_accelerators() -> Iterator[None]:
    """Within it accelerate shards on CPUs, which it takes for GPUs."""
    make = Seams.__init__

    def made(self: Any, *args: Any, **more: Any) -> None:
        shared = PartialState._shared_state
        before = shared["distributed_type"]
        shared["distributed_type"] = DistributedType.MULTI_GPU
        try:
            make(self, *args, **more)
        finally:
            shared["distributed_type"] = before

    # accelerate writes into the environment that it was asked to shard
    with mock.patch.object(Seams, "__init__", made), mock.patch.dict(os.environ):
        yield
