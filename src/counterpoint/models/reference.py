"""A reference model by its name: known by its files, checked, loaded as the run's own model is.

It is there for as long as it is asked, and no longer.

Not here: what it is asked (``step.references``), and where that is kept (``data.referenced``).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data import cache
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.forward.dropout import disable_dropout
from counterpoint.log import logger
from counterpoint.model_seams import attention_of, under_adapter
from counterpoint.models.adapters import base_of, is_adapter, load_adapted, tokenizer_source
from counterpoint.models.family import family_of
from counterpoint.models.folders import folder_named
from counterpoint.models.gguf_files import gguf_named
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from counterpoint.models.preparing import embedding_rows
from counterpoint.models.quantized import quantization_of
from counterpoint.models.vocabulary import grow_embeddings
from counterpoint.models.weights import WeightsPolicy, init_keywords
from counterpoint.objectives import INITIAL, LOSSES
from counterpoint.strict import strict_json

PARTS = ("*.safetensors", "config.json", "adapter_config.json", "*.index.json")
"""Files of a model on which its numbers depend."""

PICKLED = "*.bin"
"""Files that take the place of safetensors, where there are none."""

MOST_AT_ONCE = 1 << 24
"""Bytes of a file that are read together."""


class NamedReference(NamedTuple):
    """Where a reference lies.

    Args:
        source: hub id or folder, of a model or of an adapter, or a GGUF file.
        revision: branch, tag or commit of a hub id; None: its main branch.
    """

    source: str
    revision: str | None


def reference_named(wanted: str) -> NamedReference:
    """What the option ``reference`` names.

    Args:
        wanted: a folder, a GGUF file, a hub id, or a hub id with its revision behind an "@".
    """
    if "@" not in wanted or Path(wanted).expanduser().exists():  # or of a GGUF file
        return NamedReference(wanted, None)
    source, _, revision = wanted.rpartition("@")
    return NamedReference(source, revision)


def check_reference(args: CPOConfig, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse a reference that cannot be compared with, before any of its weights are read.

    Args:
        args: the run's options; of a loss without a reference nothing is looked at.
        model: of the run, or its configuration; None: not known.
        tokenizer: of the run; None: not known.

    Raises:
        ModelError: CP301 for one that cannot be loaded; CP338 for another kind of model or another
            vocabulary.
    """
    if not LOSSES[args.loss_type].needs_reference or args.reference == INITIAL:
        return
    source, own = _source_and_args(args)
    if shards_at_load(args) or args.fsdp:
        raise ModelError(
            "CP338",
            f"reference={args.reference} is a model of its own, which is loaded whole, and with "
            "fsdp models are held in shards. Use reference=initial.",
        )
    config = load_config(base_of(source) if is_adapter(source) else source, own)
    configured = getattr(model, "config", model)
    if configured is not None and family_of(config) is not family_of(configured):
        raise ModelError(
            "CP338",
            f"reference={args.reference} is a {config.model_type}, and the run's model a "
            f"{configured.model_type}: one of them has an encoder, or sees pictures, and the other "
            "does not, so that they do not read the same rows. Name a reference of the same kind.",
        )
    if tokenizer is not None:
        beside = tokenizer_source(source) if is_adapter(source) else source
        _check_vocabulary(args.reference, beside, own, tokenizer)


def _check_vocabulary(
    named: str, source: str, args: CPOConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    try:
        theirs = load_tokenizer(source, args).get_vocab()
    except CounterpointError:  # weights alone: ids that it does not have are met when it is asked
        return
    own = tokenizer.get_vocab()
    for token in sorted(own.keys() & theirs.keys(), key=own.__getitem__):
        # padding never reaches a loss, and is often added by hand
        if own[token] != theirs[token] and token != tokenizer.pad_token:
            raise ModelError(
                "CP338",
                f"reference={named} has another vocabulary than the run's model: {token!r} is "
                f"token {theirs[token]} there and {own[token]} here. The same ids would be other "
                "texts; name a reference with the run's own tokenizer.",
            )
    shared = len(own.keys() & theirs.keys())
    if shared < len(own) / 2:
        raise ModelError(
            "CP338",
            f"reference={named} has another vocabulary than the run's model: it knows {shared:,} "
            f"of its {len(own):,} tokens. Name a reference with the run's own tokenizer.",
        )


def reference_identity(wanted: str) -> str:
    """A digest of the files that a named reference is made of; no weight is loaded for it.

    The bytes are read once, and remembered under the names, sizes and times of the files.

    Args:
        wanted: the option ``reference``.

    Raises:
        ModelError: CP301 where there are no such files.
    """
    named = reference_named(wanted)
    parts = [named]
    if is_adapter(named.source):
        parts.append(NamedReference(base_of(named.source), None))
    files = [file for part in parts for file in _files(part)]
    seen = [
        [str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        for file in files
        for stat in [file.stat()]
    ]
    name = hashlib.blake2b(strict_json(["reference", seen]).encode(), digest_size=20).hexdigest()
    found = cache.remembered(name, lambda: _content(files))
    return str(found)


def _folder(named: NamedReference) -> Path:
    folder = folder_named(named.source, "reference")
    if folder is not None:
        return folder
    try:
        there = snapshot_download(
            named.source, revision=named.revision, allow_patterns=[*PARTS, PICKLED]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            "CP301", f"reference {named.source} is no folder here, and the hub gave none: {error}"
        ) from error
    return Path(there)


def _files(named: NamedReference) -> list[Path]:
    whole = gguf_named(named.source)
    if whole is not None:
        return [whole]
    folder = _folder(named)
    found = {file for pattern in PARTS for file in folder.glob(pattern)}
    weights = {file for file in found if file.suffix == ".safetensors"}
    if not weights:
        weights = {*folder.glob(PICKLED)}
    if not weights:
        raise ModelError("CP301", f"reference {named.source} has no weights in {folder}.")
    return sorted(found | weights)


def _content(files: list[Path]) -> str:
    total = hashlib.blake2b(digest_size=20)
    for path in files:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while part := file.read(MOST_AT_ONCE):
                total.update(part)
    return total.hexdigest()


def held_otherwise(args: CPOConfig, rows: int) -> dict[str, Any]:
    """Where a named reference is held otherwise than in its files, how; empty for most.

    Args:
        args: the run's options.
        rows: as for ``load_reference``.
    """
    asked = quantization_of(args)
    found: dict[str, Any] = {} if rows == 0 else {"rows": rows}
    if asked is not None:
        found |= {"quantised": asked.option, "bitsandbytes": metadata.version("bitsandbytes")}
    return found


def rows_for(args: CPOConfig, like: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that a named reference is to have for a run's tokens; 0: as many as it has.

    A run with ``resize_vocab`` begins with rows that its model's files do not have. The model of
    these files is the same reference once it has the same rows, which anybody can make.

    Args:
        args: the run's options.
        like: the run's model, which has a row for each token if anybody needs one.
        tokenizer: of the run. Where it does not add to the reference's own, nothing is added.
    """
    source, own = _source_and_args(args)
    if is_adapter(source):  # which brings the rows that it knows
        return 0
    had, tokens = embedding_rows(like), len(tokenizer)
    known = load_config(source, own).get_text_config().vocab_size
    if had is None or not known < tokens <= min(had):
        return 0
    try:
        theirs = load_tokenizer(source, own).get_vocab()
    except CounterpointError:  # weights alone, of which nobody knows the tokens
        return 0
    vocabulary = tokenizer.get_vocab()
    adds = all(vocabulary.get(token) == one for token, one in theirs.items())
    return tokens if adds else 0


def load_reference(
    args: CPOConfig, like: nn.Module, device: torch.device, rows: int = 0
) -> nn.Module:
    """A named reference, held as the run's model is: in its precision, with its attention.

    Args:
        args: the run's options.
        like: the run's model, unwrapped.
        device: where it goes.
        rows: that its embedding is to have at least, of ``rows_for``.

    Returns:
        The model in evaluation mode; nothing of it trains.

    Raises:
        ModelError: CP301 and its neighbours where it cannot be loaded, CP341 where it cannot have
            as many rows.
    """
    source, own = _source_and_args(args)
    quantized = quantization_of(args) is not None
    keywords = init_keywords(own)
    attention = attention_of(like)
    if attention is not None:
        keywords["attn_implementation"] = attention
    if not quantized:
        keywords["dtype"] = _dtype_of(like)
    own.model_init_kwargs = keywords
    if is_adapter(source):
        model: nn.Module = load_adapted(source, own)
    else:
        model = load_model(source, own, WeightsPolicy.of(own, adapter=True))
    if added := 0 if is_adapter(source) else grow_embeddings(model, rows):
        logger().info(
            "reference: %s has no rows for %s new tokens; each got the mean of its rows, as with "
            "resize_vocab",
            args.reference,
            f"{added:,}",
        )
    if args.disable_dropout:
        disable_dropout(model)
    model.requires_grad_(False)
    return (model if quantized else model.to(device)).eval()


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of the weights under a model's adapters."""
    inner = under_adapter(model)
    dtypes: Iterator[torch.dtype] = (
        weight.dtype
        for name, weight in inner.named_parameters()
        if weight.is_floating_point() and "lora_" not in name
    )
    return next(dtypes)


def _source_and_args(args: CPOConfig) -> tuple[str, CPOConfig]:
    """Where a named reference lies, and the options by which it is loaded."""
    named = reference_named(args.reference)
    own = copy.copy(args)
    own.model_init_kwargs = {} if named.revision is None else {"revision": named.revision}
    return named.source, own
