"""An adapter's folder as a model: its base model, and the adapter on it.

Not here: new adapters (``preparing``), models of one piece (``loading``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from counterpoint.checkpoint.bases import check_base
from counterpoint.checkpoint.weights import INDEX, WEIGHTS
from counterpoint.config import CPOConfig
from counterpoint.errors import ModelError, SetupError, first_line
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import quiet_calls
from counterpoint.model_seams import GROWN
from counterpoint.models.described import ADAPTER_FILE, check_adapter
from counterpoint.models.folders import PICKLES, refuse_pickled_adapter
from counterpoint.models.loading import load_config, load_model
from counterpoint.models.vocabulary import brings_rows, grow_embeddings, rows_of_adapter
from counterpoint.models.weights import WeightsPolicy

OWN_BASE = "base"
"""Folder inside a run's for the merged model that its new adapter lies on."""


def is_adapter(source: str) -> bool:
    """Whether a name is that of a folder that holds an adapter and no model.

    Some tools (Axolotl) write the base's config.json beside an adapter, and no weights to it.

    Args:
        source: hub id or folder.
    """
    folder = Path(source).expanduser()
    if not (folder / ADAPTER_FILE).is_file():
        return False
    described = (folder / "config.json").is_file()
    weights = any((folder / name).is_file() for name in (WEIGHTS, INDEX, *PICKLES))
    return not (described and weights)


def base_of(source: str) -> str:
    """The hub id or folder of the model that an adapter was made for.

    Args:
        source: the adapter's folder.

    Raises:
        ModelError: CP301 where its configuration does not say.
    """
    file = Path(source).expanduser() / ADAPTER_FILE
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("CP301", f"{file} names no base model: {error!r}.") from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            "CP301",
            f"{file} has base_model_name_or_path={base!r}; write there the hub id or folder of "
            "the model that the adapter was trained on.",
        )
    return _moved_along(file.parent, base)


def _moved_along(folder: Path, base: str) -> str:
    """A run keeps what a new adapter lies on in its own folder, which may have been moved."""
    if Path(base).name != OWN_BASE or Path(base).expanduser().is_dir():
        return base
    for place in (folder, folder.parent):  # of a run, or of a checkpoint in it
        if (place / OWN_BASE / "config.json").is_file():
            return str(place / OWN_BASE)
    return base


def tokenizer_source(source: str) -> str:
    """Where the tokenizer of an adapter lies: beside it, as a run saves it, or beside its base.

    Args:
        source: the adapter's folder.
    """
    beside = Path(source).expanduser() / "tokenizer_config.json"
    return source if beside.is_file() else base_of(source)


def read_adapter(source: str, args: CPOConfig) -> Any:
    """The ``peft.PeftConfig`` of an adapter's folder.

    Args:
        source: the folder.
        args: ``trust_remote_code`` is used.

    Raises:
        ModelError: CP301 for one that cannot be read; CP311 and CP315 as ``load_adapted``.
        SetupError: CP502 without PEFT.
    """
    folder = Path(source).expanduser()
    check_adapter(folder, trusted=args.trust_remote_code)
    peft = _peft_for(source)
    try:
        return peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError("CP301", f"{source} is no adapter: {first_line(error)}") from error


def _peft_for(source: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise SetupError(
            "CP502", f"{source} is an adapter and needs peft: {installing(EXTRAS['peft'])}"
        ) from error
    return peft


def load_adapted(source: str, args: CPOConfig) -> Any:
    """An adapter on its base model, its weights ready to train on.

    Args:
        source: the adapter's folder.
        args: as for ``loading.load_model``.

    Returns:
        A ``peft.PeftModel``.

    Raises:
        ModelError: CP301 where base or adapter cannot be loaded, CP307 where they do not fit,
            CP310 for a pickled adapter, CP311 for one that names code, CP315 for one that asks for
            more than its file holds.
        SetupError: CP502 without PEFT, CP519 where the base has changed since.
    """
    base = base_of(source)
    refuse_pickled_adapter(Path(source).expanduser(), args)
    check_adapter(Path(source).expanduser(), trusted=args.trust_remote_code)
    peft = _peft_for(source)
    load_config(base, args)
    model = load_model(base, args, WeightsPolicy.of(args, adapter=True))
    folder = Path(source).expanduser()
    if grow_embeddings(model, rows_of_adapter(folder)) and not brings_rows(folder):
        setattr(model, GROWN, True)
    try:
        with quiet_calls():
            adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            "CP307", f"the adapter {source} does not fit its base {base}: {first_line(error)}"
        ) from error
    check_base(adapted, folder)
    return adapted
