"""What a run is made of, loaded by the names that its options give: model, tokenizer, rows.

Each command takes what it needs: ``train`` and ``doctor`` all of it, ``smoke`` no weights,
``plan`` and ``tokens`` neither weights nor evaluation sets.

Not here: how options are read (``options.settings``), how a model is loaded
(``models.loading``), and which rows are a run's own (``own_data``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.cli.continued import (
    base_named,
    begins_adapted,
    check_new_adapter,
    held_as_trained,
    load_continued,
    own_adapter,
    tokenizer_named,
    trained_on,
)
from counterpoint.cli.hub import hub_or_cache
from counterpoint.cli.new_tokens import (
    add_rows,
    check_resizing,
    described_with_rows,
    trained_tokens,
    warn_of_untrained,
)
from counterpoint.cli.own_data import OwnRows, data_names, own_rows, second_sets
from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError, SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger
from counterpoint.models.family import DECODER, FAMILIES, family_of
from counterpoint.models.loading import load_config, load_model, load_tokenizer, random_model
from counterpoint.models.trainable import freeze_parts, left_by_adapters
from counterpoint.models.weights import WeightsPolicy
from counterpoint.options.run_options import RunOptions
from counterpoint.options.settings import Request


@dataclass(slots=True)
class RunParts:
    """What a run is made of; None for what could not be loaded, or was not asked for.

    Args:
        model: with its weights, not adapted.
        model_config: of the model.
        tokenizer: of the model, or the one given.
        train_rows: raw rows to train on.
        eval_rows: raw rows to evaluate on, or a dict of named sets.
        adapter: a ``peft.LoraConfig``.
        constraint_rows: raw rows of constraints that name a set of their own, by their names.
    """

    model: Any = None
    model_config: Any = None
    tokenizer: Any = None
    train_rows: Any = None
    eval_rows: Any = None
    adapter: Any = None
    constraint_rows: Any = None


Attempt = Callable[..., Any]
"""Calls a function with its arguments; a strict one lets errors pass."""


def call(function: Callable[..., Any], *facts: Any, **more: Any) -> Any:
    """The strict ``Attempt``."""
    return function(*facts, **more)


def load_parts(request: Request, attempt: Attempt, *, weights: bool = True) -> RunParts:
    """Load everything that a run is made of.

    Args:
        request: options read and checked.
        attempt: how to call what may fail.
        weights: False leaves the model to ``load_own_weights``.
    """
    second = [one.data for one in request.config.constrained_by if one.data is not None]
    with hub_or_cache([*(attempt(hub_names, request.run) or ()), *second]):
        parts = _load_parts(request.run, request.config, attempt)
        if weights and parts.model_config is not None:
            parts.model = attempt(load_own_weights, request, parts.model_config)
    if weights:
        if trained_on(request.run):
            parts.adapter = None  # which is on the model
        request.config.model_init_kwargs = None  # the trainer refuses them beside a loaded model
    return parts


def load_own_part(request: Request, parts: RunParts) -> None:
    """Load the model of a run whose ranks read their own parts of it; every rank must call it.

    Args:
        request: options read and checked.
        parts: without the model, which is put there.
    """
    logger().info(
        "each rank loads its own part of the model; counterpoint doctor, in one process, examines "
        "the whole of it"
    )
    with hub_or_cache(hub_names(request.run)):
        parts.model = load_own_weights(request, parts.model_config)
    request.config.model_init_kwargs = None  # as in ``load_parts``


def load_own_weights(request: Request, model_config: Any) -> Any:
    """The model itself, by the ``model_init_kwargs`` that ``load_parts`` has made.

    Args:
        request: options read and checked.
        model_config: of the model, from ``load_parts``.
    """
    run, config = request.run, request.config
    if begins_adapted(run):
        model = load_continued(run, config)
    elif run.from_scratch:
        model = random_model(str(run.model), config, model_config)
    else:
        policy = WeightsPolicy.of(config, adapter=run.lora_r is not None)
        model = load_model(str(run.model), config, policy, family=family_of(model_config))
    if run.resize_vocab:
        add_rows(model, run, load_own_tokenizer(run, config))
    freeze_parts(model, run.freeze or ())
    return model


def _load_parts(run: RunOptions, config: CPOConfig, attempt: Attempt) -> RunParts:
    attempt(merge_model_options, run, config)
    source = attempt(base_named, run)
    described = source and attempt(load_config, source, config, from_scratch=run.from_scratch)
    rows = attempt(own_rows, run, config, attempt) or OwnRows(None, None)
    tokenizer = attempt(load_own_tokenizer, run, config)
    adapter = attempt(adapter_config, run, config, described)
    return RunParts(
        model_config=described and described_with_rows(described, run, tokenizer),
        tokenizer=tokenizer,
        adapter=adapter,
        train_rows=rows.trained,
        eval_rows=rows.evaluated,
        constraint_rows=attempt(second_sets, config),
    )


def load_own_tokenizer(run: RunOptions, config: CPOConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that a run names, or its model's.

    Args:
        run: names it.
        config: after ``merge_model_options``, which says the revision.

    Raises:
        ModelError: CP301 where there is none.
        SetupError: CP502 where it needs a package that is missing.
    """
    return load_tokenizer(
        tokenizer_named(run),
        config,
        of_model=run.tokenizer is None,
        chat_template=run.chat_template,
    )


def hub_names(run: RunOptions) -> list[str]:
    """All that may have to come from the hub."""
    tokenizer = [run.tokenizer] if run.tokenizer else []
    return [base_named(run), *tokenizer, *data_names(run)]


def hide_token(config: CPOConfig) -> None:
    """Hand the hub's token on where its client looks for it, out of what a run saves.

    Args:
        config: loses its ``hub_token``.
    """
    if config.hub_token:
        os.environ["HF_TOKEN"] = config.hub_token
        config.hub_token = None


def merge_model_options(run: RunOptions, config: CPOConfig) -> None:
    """Put revision, dtype and attention among the keywords that load a model.

    Raises:
        ConfigError: CP104 for what is given twice, and for the revision of a folder.
    """
    if run.revision is not None and (path := Path(str(run.model)).expanduser()).exists():
        kind = "folder" if path.is_dir() else "file"
        raise ConfigError(
            "CP104",
            f"revision={run.revision} would do nothing: {run.model} is a {kind}, which has no "
            "revisions. Name the model of the hub, or leave revision out.",
        )
    given = config.model_init_kwargs
    keywords = dict(given) if isinstance(given, Mapping) else {}
    held = held_as_trained(run)
    own = {
        "revision": run.revision or held.get("revision"),
        "dtype": run.dtype or held.get("dtype"),
        "attn_implementation": run.attn_implementation,
    }
    for name, value in own.items():
        if value is None:
            continue
        if name in keywords:
            raise ConfigError(
                "CP104", f"{name} is given as an option and in model_init_kwargs; drop one."
            )
        keywords[name] = value
    config.model_init_kwargs = keywords


def adapter_config(run: RunOptions, config: CPOConfig, model_config: Any) -> Any:
    """The adapter that a run trains, as a ``peft.PeftConfig``; None where it trains all weights.

    Args:
        run: describes it, or begins with it.
        config: as for ``continued.own_adapter``.
        model_config: of the model; None where it could not be loaded.

    Raises:
        ConfigError: CP104 and CP105 as ``continued.own_adapter``, CP105 for experts in shards.
        SetupError: CP502 where peft is not installed.
    """
    check_new_adapter(run)
    check_resizing(run, config)
    if trained_on(run):
        return own_adapter(run, config)
    if run.lora_r is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SetupError(
            "CP502", f"lora_r needs the package peft: {installing(EXTRAS['peft'])}"
        ) from error
    if run.lora_target_parameters and config.fsdp:
        raise ConfigError(
            "CP105",
            "lora_target_parameters with fsdp: an adapter of experts has not been proved where "
            "ranks hold parts of them. Leave fsdp out, or adapt layers (lora_target_modules).",
        )
    warn_of_untrained(run, config)
    targets = run.lora_target_modules or ["all-linear"]
    return LoraConfig(
        task_type=FAMILIES[DECODER].task if model_config is None else family_of(model_config).task,
        r=run.lora_r,
        lora_alpha=run.lora_alpha or 2 * run.lora_r,
        lora_dropout=run.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        # what sees stays as it is, unless its layers are named
        exclude_modules=None if run.lora_target_modules else left_by_adapters(model_config),
        modules_to_save=run.lora_modules_to_save,
        target_parameters=run.lora_target_parameters,
        trainable_token_indices=_new_tokens(run, config, model_config),
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
    )


def _new_tokens(run: RunOptions, config: CPOConfig, described: Any) -> dict[str, list[int]] | None:
    if not run.resize_vocab:  # which is asked before a tokenizer is loaded again
        return None
    return trained_tokens(run, config, described, load_own_tokenizer(run, config))
