"""What a trainer is given, looked at before anything slow is loaded; and the model by its name."""

from __future__ import annotations

from typing import Any

from torch import nn

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.console.phases import allow_bars
from counterpoint.data.lanes import check_lanes
from counterpoint.engine.table import settle
from counterpoint.errors import ConfigError, ModelError, SetupError
from counterpoint.log import logger
from counterpoint.masking import keep_secrets
from counterpoint.model_seams import loaded_from
from counterpoint.models.family import family_of
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from counterpoint.models.weights import WeightsPolicy
from counterpoint.trainer.trackers import check_trackers, hide_secrets


def checked_args(
    args: CPOConfig | None, data_collator: Any, preprocess: Any, optimizer: Any
) -> CPOConfig:
    """The options, once nothing of what was given is refused.

    Args:
        args: the options; None for the defaults.
        data_collator: as the trainer was given it.
        preprocess: ``preprocess_logits_for_metrics``, likewise.
        optimizer: likewise; None for the one that the options name.

    Raises:
        ConfigError: CP103 to CP105 for what cannot be meant.
        SetupError: CP503 for a launch that will not do.
    """
    if args is None:
        args = CPOConfig(output_dir="tmp_trainer")
    if not isinstance(args, CPOConfig):
        raise ConfigError("CP103", f"args should be a CPOConfig, not a {type(args).__name__}.")
    if data_collator is not None:
        raise ConfigError(
            "CP105",
            "data_collator is refused: how a batch is laid out is chosen so that a step stays "
            "the same function of its pairs.",
        )
    if preprocess is not None:
        raise ConfigError(
            "CP105",
            "preprocess_logits_for_metrics is refused: logits exist only in chunks and are "
            "never kept; compute_metrics gets each pair's rewards.",
        )
    if args.stochastic_rounding and optimizer is not None:
        raise ConfigError(
            "CP104", "stochastic_rounding brings its own optimizer, but optimizers has one."
        )
    check_trackers(args)
    allow_bars(not args.disable_tqdm)
    keep_secrets(vars(args))
    hide_secrets(args)
    launched = ranks.launched()
    if launched > 1 and args.world_size == 1:
        raise SetupError(
            "CP503",
            f"{launched} processes were launched (WORLD_SIZE), but accelerate sees one, so that "
            "each would train alone on all rows and write the same folder. Launch with torchrun "
            "or accelerate launch.",
        )
    if args.n_gpu > 1:
        raise SetupError(
            "CP503",
            f"one process with {args.n_gpu} GPUs would split batches behind the trainer's back. "
            f"Launch with torchrun --nproc-per-node={args.n_gpu}, or show it one GPU with "
            "CUDA_VISIBLE_DEVICES=0.",
        )
    if not args.remove_unused_columns:  # as TRL sets it itself, so that many scripts say it
        logger().info("remove_unused_columns=False changes nothing: columns go by their meaning")
    settle(args)
    return args


def loaded(model: nn.Module | str | None, args: CPOConfig, *, adapter: bool) -> nn.Module | None:
    """The model itself, loaded if it is given by name.

    Args:
        model: itself, or its name.
        args: the run's options.
        adapter: an adapter will be put on it.
    """
    if isinstance(model, str):
        # refuses what cannot be trained before any weight is read
        family = family_of(load_config(model, args))
        policy = WeightsPolicy.of(args, adapter=adapter)
        loaded: nn.Module = load_model(model, args, policy, family=family)
        return loaded
    if args.model_init_kwargs:
        raise ConfigError("CP104", "model_init_kwargs is given, but the model is loaded already.")
    return model


def own_tokenizer(model: nn.Module, args: CPOConfig) -> Any:
    """The tokenizer that lies beside a model's weights."""
    source = loaded_from(model)
    if not source:
        raise ModelError(
            "CP301", "a model made in memory has no tokenizer of its own; pass processing_class."
        )
    return load_tokenizer(source, args)


def check_stream(pairs: Any, args: CPOConfig) -> None:
    """Refuse what cannot be done with a training set, if it is streamed."""
    if pairs is None or hasattr(pairs, "__len__"):
        return
    if args.max_steps <= 0:
        raise ConfigError("CP107", "a streamed train_dataset has no length: set max_steps.")
    for name in ("dataloader_num_workers", "dataloader_drop_last"):
        if getattr(args, name):
            raise ConfigError(
                "CP104",
                f"{name}={getattr(args, name)} does nothing with a streamed train_dataset, which "
                "the training process reads in its order to its end; leave it out.",
            )
    check_lanes(getattr(pairs, "num_shards", 1), args.stream_shards, args.world_size)
