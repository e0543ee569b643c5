"""``optimizer_offload``: what a rank holds of a model in shards waits in the host's memory.

It is FSDP2's ``CPUOffloadPolicy``. Whoever asks for it by another name (``cpu_offload`` in
``fsdp_config``, ``fsdp="full_shard offload"``, accelerate's launcher) has set the option too, so
that a plan knows it.

Not here: what a device and the host then hold (``planner``).
"""

from __future__ import annotations

import os
from typing import Any

from counterpoint.engine.fsdp2 import sharding_asked
from counterpoint.errors import ConfigError

NAMES = ("cpu_offload", "offload_params")
"""What ``fsdp_config`` calls it: transformers, and accelerate."""

LAUNCHED = "FSDP_OFFLOAD_PARAMS"
"""What accelerate's launcher says of it in the environment."""

ON_DEVICE = ("bnb", "8bit", "4bit", "paged", "apollo", "galore", "schedule_free")
"""Parts of the names of optimizers that compute on the device of the products."""


def settle_offload(config: Any) -> None:
    """Let the option and all other names for it say the same.

    Args:
        config: a ``CPOConfig`` whose options are resolved.

    Raises:
        ConfigError: CP104 where nothing is sharded, or where the host cannot do the update.
    """
    given = config.fsdp_config if isinstance(config.fsdp_config, dict) else {}
    shards = bool(config.fsdp) or sharding_asked()
    launched = sharding_asked() and os.environ.get(LAUNCHED, "").lower() == "true"
    if shards and (launched or any(given.get(name) for name in NAMES)):
        config.optimizer_offload = True
    if not config.optimizer_offload:
        return
    if not shards:
        raise ConfigError(
            "CP104",
            "optimizer_offload is a way to hold a model in shards (FSDP2), and nothing asks for "
            "shards. Set fsdp=2 as well; on a single accelerator use optim='paged_adamw_32bit' "
            "(bitsandbytes), whose moments go to the host where the device is full.",
        )
    _refuse_on_device(config)
    if config.fsdp:
        given.pop("offload_params", None)
        given["cpu_offload"] = True
        # from which transformers has made accelerate's settings already
        plugin = getattr(config, "fsdp_plugin_args", None)
        if plugin is not None:
            plugin["cpu_offload"] = True


def _refuse_on_device(config: Any) -> None:
    optim = str(getattr(config.optim, "value", config.optim))
    if any(part in optim for part in ON_DEVICE):
        raise ConfigError(
            "CP104",
            f"optim={optim!r} computes on the accelerator, but with optimizer_offload weights and "
            "moments wait on the host, which does the update. Use an optimizer of torch's "
            "(optim='adamw_torch_fused'), or leave optimizer_offload out.",
        )
    for name, why in (
        ("stochastic_rounding", "its AdamW is not tried on the host under shards"),
        ("load_in_4bit", "quantised weights stay where they are multiplied"),
        ("load_in_8bit", "quantised weights stay where they are multiplied"),
        ("fp16", "its loss scaler looks at gradients on the accelerator; bf16 needs none"),
    ):
        if getattr(config, name):
            raise ConfigError(
                "CP104", f"{name} and optimizer_offload: {why}; leave one of them out."
            )
