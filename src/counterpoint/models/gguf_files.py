"""A model that is given as a GGUF file, llama.cpp's format: dequantised while it is loaded.

transformers reads such a file, weights and tokenizer, into what it would have made of the usual
folder; nothing of it is read otherwise here. What is trained, and what is saved, are the
dequantised weights. Rounding of the file's types stays in them.

Not here: the file's header (``gguf_header``), loading itself (``loading``).
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from counterpoint.checkpoint.weights import INDEX, WEIGHTS
from counterpoint.config import CPOConfig
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.errors import ConfigError, ModelError, SetupError, first_line
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import quiet_calls
from counterpoint.models.described import ADAPTER_FILE
from counterpoint.models.gguf_header import GgufHeader, read_gguf_header
from counterpoint.models.quantized import quantization_of

ENDING = ".gguf"

DEQUANTIZED = "dequantized_from"
"""The attribute of a model that says so; not of its configuration, which is saved."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NOT_SUPPORTED = re.compile(
    r"(?:architecture|GGUF).*not supported|Cannot rebuild a config|Unknown gguf model_type"
)
_BESIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""Files of that ending that hold no language model: a projector of pictures, a matrix of weights'
importance."""


def gguf_named(source: str) -> Path | None:
    """The GGUF file that a model is given by; None where it is a usual folder or a hub id.

    Args:
        source: a file, a folder, or a hub id. A folder with the usual weights is a usual folder.

    Raises:
        SetupError: CP530 for a folder with several.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == ENDING and path.is_file():
        return path.absolute()
    if not source.strip() or not path.is_dir():
        return None
    found = sorted(one for one in path.iterdir() if one.suffix.lower() == ENDING)
    found = [one for one in found if one.is_file()]
    usual = {one.name for one in path.iterdir()} & {WEIGHTS, INDEX, ADAPTER_FILE}
    if not found or usual:
        return None
    models = [one for one in found if not _BESIDE.search(one.name)] or found
    wholes = [one for one in models if not _PART.search(one.name)]
    if len(models) > 1 and wholes:
        names = ", ".join(one.name for one in models[:5])
        raise SetupError(
            "CP530",
            f"{source} holds {len(models)} GGUF files ({names}{', ...' * (len(models) > 5)}), each "
            f"a model of its own; name one, as in --model {wholes[0]}.",
        )
    return models[0].absolute()


def source_arguments(source: str) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that say which model it is.

    Args:
        source: hub id, folder or GGUF file.
    """
    file = gguf_named(source)
    if file is None:
        return {"pretrained_model_name_or_path": source}
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": str(file)}


def own_tokenizer_named(source: str) -> dict[str, Any]:
    """The same for a tokenizer: of a folder that has its files, these, not what is made of a GGUF.

    Args:
        source: hub id, folder or GGUF file.
    """
    folder = Path(source).expanduser()
    if all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return {"pretrained_model_name_or_path": source}
    return source_arguments(source)


def check_gguf(file: Path, args: CPOConfig | None = None) -> GgufHeader:
    """Refuse a file that cannot be loaded, before any of its weights is read.

    Args:
        file: of ``gguf_named``.
        args: a run's options; None where only the tokenizer is wanted.

    Raises:
        SetupError: CP502 without the package ``gguf``, CP531 for a part of several, CP532 for what
            is broken or cut short.
        ModelError: CP301 for a file with an adapter beside it.
        ConfigError: CP104 for a run that quantises, CP105 for one that loads in shards.
    """
    if find_spec("gguf") is None:
        raise SetupError(
            "CP502",
            f"{file} needs the package gguf, which reads it: {installing(EXTRAS['gguf'])}",
        )
    header = read_gguf_header(file)
    if header.parts > 1 or _PART.search(file.name):
        raise SetupError(
            "CP531",
            f"{file} is a part of a model of {max(header.parts, 2)} files or more, and a model is "
            "read from one. Put them together first, with llama.cpp's tool: "
            f"llama-gguf-split --merge {file.name} whole.gguf, given the first part.",
        )
    if (file.parent / ADAPTER_FILE).is_file():
        raise ModelError(
            "CP301",
            f"an adapter lies beside {file}, which transformers would put on it. Move one of them "
            "to a folder of its own; an adapter is named by its folder.",
        )
    if args is None:
        return header
    asked = quantization_of(args)
    if asked is not None:
        raise ConfigError(
            "CP104",
            f"{asked.option} quantises weights while they are loaded from safetensors, and {file} "
            "is dequantised while it is loaded. Save it as a folder first (docs/gguf.md).",
        )
    if shards_at_load(args):
        raise ConfigError(
            "CP105",
            f"{file} is a GGUF file, which is not loaded in shards. Save it as a folder first "
            "(docs/gguf.md).",
        )
    return header


def gguf_config(file: Path) -> PretrainedConfig:
    """The configuration that transformers makes of a file; a second time it is at hand.

    Args:
        file: of ``gguf_named``.
    """
    state = file.stat()
    return copy.deepcopy(_config_of(file, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=2)
def _config_of(file: Path, changed: int, size: int) -> PretrainedConfig:
    """With a large vocabulary it takes ten seconds to read."""
    with quiet_calls():
        return AutoConfig.from_pretrained(**source_arguments(str(file)))


def gguf_tokenizer(file: Path, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer that the folder of a run from this file will have.

    What transformers makes of a file need not be what it makes of the folder that this is saved to:
    for some kinds of models it has rules of its own for normalizer and pre-tokenizer there. So it
    is saved and read once before anything is trained with it.

    Args:
        file: of ``gguf_named``.
        source: by which it was named.
    """
    made = AutoTokenizer.from_pretrained(**source_arguments(str(file)))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: getattr(made, name, None) for name in names}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        chat_template=made.chat_template,
        **{name: token for name, token in special.items() if token is not None},
    )
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as folder:
        plain.save_pretrained(folder)
        gguf_config(file).save_pretrained(folder)
        read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    read.name_or_path = source
    return read


def dequantizing() -> dict[str, Any]:
    """What ``from_pretrained`` is told so that weights are dequantised, whatever kernels it has."""
    made = getattr(transformers, "GgufConfig", None)  # before it there was no other way
    return {} if made is None else {"quantization_config": made(dequantize=True)}


def dequantized(model: Any, source: str, header: GgufHeader) -> None:
    """Let a model say that it was read from a GGUF file.

    Args:
        model: that was loaded.
        source: by which it was named, and can be again.
        header: of the file.
    """
    setattr(model, DEQUANTIZED, header.facts())
    # the folder of the file is no model; an adapter names what its base was loaded from
    model.config.name_or_path = model.name_or_path = source


def dequantized_from(model: Any) -> Mapping[str, Any] | None:
    """What a model was dequantised from: ``architecture`` and ``types``; None for any other.

    Args:
        model: plain or PEFT-wrapped.
    """
    found: Mapping[str, Any] | None = getattr(model, DEQUANTIZED, None)
    return found


def gguf_error(file: Path, header: GgufHeader, error: Exception) -> SetupError | None:
    """The error of what transformers could not make of a file; None where it says too little.

    Args:
        file: that was loaded.
        header: of it.
        error: of transformers.
    """
    if isinstance(error, ValueError | KeyError | NotImplementedError) and (
        _NOT_SUPPORTED.search(str(error)) or str(error).strip("'") == header.architecture
    ):
        return SetupError(
            "CP533",
            f"{file} is of the architecture {header.architecture}, which this release of "
            f"transformers does not read from GGUF ({first_line(error)}). Use the model's own "
            "folder of safetensors, or a newer transformers.",
        )
    return None
