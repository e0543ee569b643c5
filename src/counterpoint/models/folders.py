"""The folder that a model or a tokenizer lies in: what must be there, and what must not.

All of it is seen from the names of files, before any of them is opened.

Not here: what a configuration asks for (``described``), loading (``loading``).
"""

from __future__ import annotations

import json
from pathlib import Path

from counterpoint.checkpoint.manifest import MANIFEST, read_manifest, refuse_unlisted
from counterpoint.checkpoint.weights import INDEX, WEIGHTS
from counterpoint.config import CPOConfig
from counterpoint.errors import ModelError, SetupError, first_line
from counterpoint.models.described import ADAPTER_FILE

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def folder_named(source: str, what: str) -> Path | None:
    """The folder that a model or tokenizer lies in; None if the name is one of the hub's."""
    if not source.strip():  # which as a path would be the current folder
        raise ModelError("CP301", f"the name of the {what} is blank; name a folder or a hub id.")
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(
            "CP301",
            f"{what} {source} is a file, and not a GGUF one; name the folder it lies in, or a hub "
            "id.",
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise ModelError("CP301", f"{what} {source}: there is no such folder.")
    return None


def check_model_folder(folder: Path, from_scratch: bool, allow_pickle: bool) -> None:
    """Refuse a folder that is no model, or has its weights in no way that is read.

    Args:
        folder: that a model was named by.
        from_scratch: it need not hold weights.
        allow_pickle: the option.

    Raises:
        ModelError: CP301 for what lacks, CP310 for pickled weights.
        SetupError: CP521 for a checkpoint with files that its manifest does not list.
    """
    found = {path.name for path in folder.iterdir()}
    if MANIFEST in found:
        _check_checkpoint(folder)
    if ADAPTER_FILE in found:
        raise holds_an_adapter(folder)
    if "config.json" not in found:
        raise ModelError(
            "CP301",
            f"{folder} is no model: it has no config.json. A model's folder holds config.json, "
            "the weights as safetensors and the tokenizer; with from_scratch, no weights.",
        )
    if from_scratch:
        return
    if found.intersection((WEIGHTS, INDEX)):
        _check_shards(folder, found)
        return
    if found.intersection(PICKLES):
        if allow_pickle:
            return
        raise is_pickled(folder)
    raise ModelError(
        "CP301",
        f"{folder} has a config.json but no weights ({WEIGHTS}); add --from_scratch to start "
        "from random weights.",
    )


def check_tokenizer_folder(folder: Path, of_model: bool) -> None:
    """Refuse a folder without a vocabulary.

    Args:
        folder: that a tokenizer was named by.
        of_model: it is the model's own.

    Raises:
        ModelError: CP301.
    """
    found = [path.name for path in folder.iterdir()]
    if any(name in _VOCABULARIES or name.endswith(".tiktoken") for name in found):
        return
    # transformers would make up a tokenizer without words from the model's config.json
    advice = "name one with --tokenizer" if of_model else "name another folder"
    raise ModelError(
        "CP301", f"{folder} holds no tokenizer (no tokenizer.json or vocabulary); {advice}."
    )


def refuse_pickled_adapter(folder: Path, args: CPOConfig) -> None:
    """Refuse an adapter without safetensors: PEFT would read its pickle without a word.

    Args:
        folder: of the adapter.
        args: ``allow_pickle`` is used.

    Raises:
        ModelError: CP310.
    """
    if not (folder / "adapter_model.safetensors").is_file() and not args.allow_pickle:
        raise is_pickled(folder)


def holds_an_adapter(source: object) -> ModelError:
    """CP301, ready to raise."""
    # transformers would load whichever base model it names, and put it on
    return ModelError(
        "CP301", f"{source} holds an adapter, not a model; merge it into its base model first."
    )


def is_pickled(source: object) -> ModelError:
    """CP310, ready to raise."""
    return ModelError(
        "CP310",
        f"{source} has its weights as pickles, which can run code when opened; save them as "
        "safetensors with save_pretrained first, or set allow_pickle (--allow_pickle) if you trust "
        "whoever made them.",
    )


def _check_checkpoint(folder: Path) -> None:
    """A checkpoint taken for a model has no file beside those that it was saved with."""
    try:
        manifest = read_manifest(folder)
    except SetupError:  # a file of that name that is not ours, or too old or damaged to tell
        return
    refuse_unlisted(folder, manifest)


def _check_shards(folder: Path, found: set[str]) -> None:
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shards - found)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError("CP301", f"{index} is no index of weights: {first_line(error)}") from error
    if WEIGHTS in found:
        if shards <= {WEIGHTS}:
            return
        raise ModelError(
            "CP301",
            f"{folder} holds two sets of weights: {WEIGHTS}, and the {len(shards)} files that "
            f"{INDEX} names. Only one can be meant; move the other out of the folder.",
        )
    if missing:
        raise ModelError(
            "CP301",
            f"{folder} lacks {len(missing)} of {len(shards)} files of weights: {missing[0]}"
            f"{', ...' if len(missing) > 1 else ''}.",
        )
