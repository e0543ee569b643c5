"""``--resize_vocab``: tokens of the run's tokenizer that its model does not have.

Not here: how rows are added (``models.vocabulary``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from counterpoint.cli.continued import base_named, begins_adapted
from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.log import logger
from counterpoint.model_seams import GROWN
from counterpoint.models.loading import load_tokenizer, random_model
from counterpoint.models.vocabulary import (
    check_rows,
    check_tied,
    covered,
    embedding_names,
    grow_embeddings,
    is_embedding,
    new_ids,
    rows_of_adapter,
    with_rows,
)
from counterpoint.models.weights import WeightsPolicy
from counterpoint.options.run_options import RunOptions

UNTRAINED_ROWS = "CW246"
"""Code of the warning that rows of new tokens stay as they are."""


def check_resizing(run: RunOptions, config: CPOConfig) -> None:
    """Refuse rows for new tokens where they cannot be added.

    Args:
        run: names model and tokenizer.
        config: how the model is spread.

    Raises:
        ConfigError: CP104 for an adapter that is trained on, CP105 for a model in shards.
    """
    if not run.resize_vocab:
        return
    if begins_adapted(run) and not run.create_new_adapter:
        raise ConfigError(
            "CP104",
            f"resize_vocab adds rows for new tokens, and {run.model} is an adapter that is trained "
            "on with the rows that it has. Add create_new_adapter and lora_r, which train them in "
            "a new one on top.",
        )
    if config.fsdp:
        raise ConfigError(
            "CP105",
            "resize_vocab with fsdp: rows cannot be added to a model of which ranks hold parts. "
            "Resize and save it first (model.resize_token_embeddings), or leave fsdp out.",
        )


def add_rows(model: Any, run: RunOptions, tokenizer: Any) -> None:
    """Give a run's model a row for each of its tokens, where that is asked for.

    Args:
        model: loaded, without an adapter.
        run: of the model.
        tokenizer: of the run.

    Raises:
        ModelError: CP341 for a model that cannot have more.
    """
    if not run.resize_vocab:
        return
    names = embedding_names(model)
    if run.lora_r and len(covered(model, names, run.lora_modules_to_save or ())) < len(names):
        check_tied(model)
    added = grow_embeddings(model, len(tokenizer))
    if added and not covered(model, names, run.lora_target_modules or ()):
        setattr(model, GROWN, True)  # else the adapter lies on rows that it has to bring along
    logger().info(
        "the tokenizer has %s tokens; %s rows were added to the model's embedding, each the mean "
        "of those that it had",
        f"{len(tokenizer):,}",
        f"{added:,}" if added else "no",
    )


def described_with_rows(described: Any, run: RunOptions, tokenizer: Any) -> Any:
    """The configuration of a run's model as it trains: with rows for its tokens.

    Args:
        described: of the files; changed where they have fewer.
        run: of the model.
        tokenizer: of the run; None where it could not be loaded.
    """
    rows = rows_of_adapter(Path(str(run.model)).expanduser()) if begins_adapted(run) else 0
    if run.resize_vocab and tokenizer is not None:
        rows = max(rows, len(tokenizer))
    return with_rows(described, rows) if rows else described


def trained_tokens(
    run: RunOptions, config: CPOConfig, described: Any, tokenizer: Any
) -> dict[str, list[int]] | None:
    """Rows that a new adapter trains: those of new tokens, by the names of embedding and head.

    Args:
        run: which describes the adapter.
        config: as for loading.
        described: of the model, as its files have it.
        tokenizer: of the run.

    Returns:
        What PEFT calls ``trainable_token_indices``; None where none are asked for or new.

    Raises:
        ModelError: CP341 for a model that cannot have more rows, CP342 for a tokenizer that does
            not add to the model's own.
    """
    if not run.resize_vocab or described is None:
        return None
    own = None
    if run.tokenizer:
        try:
            own = load_tokenizer(base_named(run), config).get_vocab()
        except CounterpointError:  # weights alone: what is new is what has no row
            own = None
    with torch.device("meta"):
        model = random_model(
            str(run.model), config, described, WeightsPolicy.of(config, adapter=True)
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = new_ids(tokenizer, own, rows, named=str(run.tokenizer or run.model))
    check_rows(model, max(ids, default=-1) + 1)
    whole = [*(run.lora_modules_to_save or ()), *(run.lora_target_modules or ())]
    every = embedding_names(model)
    names = [name for name in every if name not in covered(model, every, whole)]
    return dict.fromkeys(names, ids) if ids and names else None


def warn_of_untrained(run: RunOptions, config: CPOConfig) -> None:
    """Say where a new adapter leaves the rows of new tokens as they are.

    An embedding that was padded has rows for them, so that nothing fails.

    Args:
        run: which describes the adapter and names a tokenizer.
        config: as for loading.
    """
    layers = [*(run.lora_modules_to_save or ()), *(run.lora_target_modules or ())]
    if run.tokenizer is None or run.resize_vocab or any(map(is_embedding, layers)):
        return
    try:
        own = load_tokenizer(base_named(run), config).get_vocab()
        given = load_tokenizer(run.tokenizer, config, of_model=False).get_vocab()
    except CounterpointError:  # which is said where the run's own is loaded
        return
    added = sorted(given.keys() - own.keys(), key=given.__getitem__)
    if added and len(own.keys() & given.keys()) == len(own):  # else it is another vocabulary
        logger().warning(
            "%s %s tokens of %s are new to %s (%r is the first), and the adapter trains none of "
            "their rows. resize_vocab: true trains them.",
            UNTRAINED_ROWS,
            f"{len(added):,}",
            run.tokenizer,
            run.model,
            added[0],
        )
