"""A run whose ``--model`` is an adapter: it trains that adapter on, over the base that it names.

With ``create_new_adapter`` it is merged into its base instead, and a new one is trained on both.

Not here: putting a new adapter on a model (``parts``), loading (``models.adapters``), the folder
that a run keeps the merged model in (``new_adapter``).
"""

from __future__ import annotations

from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.errors import ConfigError
from counterpoint.log import logger
from counterpoint.models.adapters import (
    base_of,
    is_adapter,
    load_adapted,
    read_adapter,
    tokenizer_source,
)
from counterpoint.models.merging import merged_model
from counterpoint.options.run_options import RunOptions
from counterpoint.options.run_weights import holding_of


def begins_adapted(run: RunOptions) -> bool:
    """Whether a run's model is the folder of an adapter.

    Args:
        run: names the model.
    """
    return not run.from_scratch and is_adapter(str(run.model))


def trained_on(run: RunOptions) -> bool:
    """Whether a run trains the adapter that it begins with, and no new one on top of it.

    Args:
        run: names the model.
    """
    return begins_adapted(run) and not run.create_new_adapter


def check_new_adapter(run: RunOptions) -> None:
    """Refuse ``create_new_adapter`` where there is no adapter to put one on.

    Args:
        run: names the model.

    Raises:
        ConfigError: CP104.
    """
    if run.create_new_adapter and not begins_adapted(run):
        raise ConfigError(
            "CP104",
            f"create_new_adapter merges the adapter that model names and trains another one on "
            f"top, and {run.model} is no folder of an adapter. On a whole model lora_r alone "
            "trains a new one; leave create_new_adapter out.",
        )


def base_named(run: RunOptions) -> str:
    """The hub id or folder of a run's model, or of the base of the adapter that it begins with.

    Args:
        run: names the model.

    Raises:
        ModelError: CP301 for an adapter that names no base.
    """
    return base_of(str(run.model)) if begins_adapted(run) else str(run.model)


def tokenizer_named(run: RunOptions) -> str:
    """Where a run's tokenizer lies.

    Args:
        run: names it, or its model.
    """
    if run.tokenizer:
        return run.tokenizer
    return tokenizer_source(str(run.model)) if begins_adapted(run) else str(run.model)


def held_as_trained(run: RunOptions) -> dict[str, Any]:
    """Precision and revision of the base when the adapter was trained; empty for any other model.

    Args:
        run: names the model.
    """
    held = holding_of(str(run.model)) if begins_adapted(run) else {}
    return {name: held[name] for name in ("dtype", "revision") if name in held}


def own_adapter(run: RunOptions, config: CPOConfig) -> Any:
    """The ``peft.PeftConfig`` of the adapter that a run begins with.

    Args:
        run: whose model is an adapter.
        config: ``trust_remote_code`` is used.

    Raises:
        ConfigError: CP104 for a run that describes another adapter, CP105 for one in shards.
        ModelError: CP301 for a configuration that cannot be read, CP311 and CP315 as for loading.
        SetupError: CP502 without PEFT.
    """
    source = str(run.model)
    if run.lora_r is not None:
        raise ConfigError(
            "CP104",
            f"{source} is an adapter, and lora_r describes another one. Leave out lora_r and its "
            "relatives to train this one on; or add create_new_adapter, which merges it into its "
            "base and trains a new one on both.",
        )
    if shards_at_load(config):
        raise ConfigError(
            "CP105",
            f"{source} is an adapter, which is not loaded in shards. Merge it first: counterpoint "
            f"merge {source} --out FOLDER.",
        )
    found = read_adapter(source, config)
    found.inference_mode = False  # as it is saved; here it is trained
    return found


def load_continued(run: RunOptions, config: CPOConfig) -> Any:
    """The adapter that a run begins with, on its base: ready to train on, or merged into it.

    Args:
        run: whose model is an adapter.
        config: as for ``models.adapters.load_adapted``.

    Raises:
        CounterpointError: as ``load_adapted``, and CP307 for what cannot be merged.
    """
    if not trained_on(run):
        return merged_model(str(run.model), config)[0]
    model = load_adapted(str(run.model), config)
    logger().info("training on the adapter of %s, on its base %s", run.model, base_named(run))
    return model
