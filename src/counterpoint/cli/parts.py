"""What a run is made of, loaded by the names that its options give: model, tokenizer, rows.

Each command takes what it needs: ``train`` and ``doctor`` all of it, ``smoke`` no weights,
``plan`` and ``tokens`` neither weights nor evaluation sets.

Not here: how options are read (``options.settings``), how a model or a file is loaded
(``models.loading``, ``data.sources``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.cli.continued import (
    base_named,
    begins_adapted,
    held_as_trained,
    load_continued,
    own_adapter,
    tokenizer_named,
)
from counterpoint.cli.hub import hub_or_cache
from counterpoint.config import CPOConfig
from counterpoint.data.sources import load, pick_split
from counterpoint.errors import ConfigError, DataError, SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger
from counterpoint.models.family import DECODER, FAMILIES, family_of
from counterpoint.models.loading import load_config, load_model, load_tokenizer, random_model
from counterpoint.models.trainable import freeze_parts, left_by_adapters
from counterpoint.models.weights import WeightsPolicy
from counterpoint.options.run_options import RunOptions
from counterpoint.options.settings import Request
from counterpoint.trainer.second_sets import rows_of

EVAL_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)")


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
        if begins_adapted(request.run):
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
    freeze_parts(model, run.freeze or ())
    return model


def _load_parts(run: RunOptions, config: CPOConfig, attempt: Attempt) -> RunParts:
    attempt(merge_model_options, run, config)
    source = attempt(base_named, run)
    described = source and attempt(load_config, source, config, from_scratch=run.from_scratch)
    return RunParts(
        model_config=described,
        tokenizer=attempt(load_own_tokenizer, run, config),
        adapter=attempt(adapter_config, run, config, described),
        train_rows=attempt(train_rows, run, config),
        eval_rows=attempt(eval_sets, run),
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
    named = _named_sets(run.eval_dataset)
    evals = named.values() if isinstance(named, Mapping) else named
    return [base_named(run), *([run.tokenizer] if run.tokenizer else []), *run.dataset, *evals]


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
        ConfigError: CP104 and CP105 as ``continued.own_adapter``.
        SetupError: CP502 where peft is not installed.
    """
    if begins_adapted(run):
        return own_adapter(run, config)
    if run.lora_r is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SetupError(
            "CP502", f"lora_r needs the package peft: {installing(EXTRAS['peft'])}"
        ) from error
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
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
    )


# Data


def train_rows(run: RunOptions, config: CPOConfig) -> Any:
    """The raw rows to train on.

    Raises:
        ConfigError: CP107 for a stream without ``max_steps``.
        DataError: CP2xx for what cannot be read.
    """
    rows = open_rows(run)
    if not hasattr(rows, "__len__") and config.max_steps <= 0:
        raise ConfigError(
            "CP107", "max_steps is missing: a streamed data set does not say how long it is."
        )
    return rows


def open_rows(run: RunOptions) -> Any:
    """The raw rows that a run names, of whatever length.

    Raises:
        DataError: CP2xx for what cannot be read.
    """
    return pick_split(load(_sources(run.dataset), split=run.dataset_split, streaming=run.streaming))


def _sources(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def eval_sets(run: RunOptions) -> Any:
    """The raw rows to evaluate on: of one set, of several by name, or None.

    Raises:
        ConfigError: CP103 for names that cannot be meant.
        DataError: CP2xx for what cannot be read.
    """
    if not run.eval_dataset:
        return None
    named = _named_sets(run.eval_dataset)
    if isinstance(named, Mapping):
        return {name: _open_eval([source], run) for name, source in named.items()}
    return _open_eval(named, run)


def second_sets(config: CPOConfig) -> dict[str, Any]:
    """The raw rows of constraints that have a set of their own, by their names.

    Raises:
        ConfigError: CP107 for one that names no set.
        DataError: CP2xx for what cannot be read.
    """
    return {one.name: rows_of(one) for one in config.constrained_by if one.row.own_set}


def _named_sets(given: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
    """``name=path`` words or a mapping of YAML, as a mapping; sets without names as they are."""
    if isinstance(given, Mapping):
        wrong = [name for name, source in given.items() if not isinstance(source, str)]
        if wrong:
            raise ConfigError("CP103", f"eval_dataset: {wrong[0]} should be a file or a hub id.")
        return dict(given)
    parts = [None if Path(word).exists() else _NAMED.fullmatch(word) for word in given]
    named = {part[1]: part[2] for part in parts if part}
    if not named:
        return given
    if len(named) != len(given):
        raise ConfigError(
            "CP103",
            f"eval_dataset={' '.join(given)} should be name=path with a different name for each "
            "set, or paths without names.",
        )
    return named


def _open_eval(sources: list[str], run: RunOptions) -> Any:
    data = load(_sources(sources), split=run.eval_dataset_split)
    if not isinstance(data, Mapping) or len(data) == 1:
        return pick_split(data)
    for split in EVAL_SPLITS:
        if split in data:
            return data[split]
    raise DataError(
        "CP211",
        f"eval_dataset {' '.join(sources)} has the splits {', '.join(data)}; say which one with "
        "eval_dataset_split.",
    )
