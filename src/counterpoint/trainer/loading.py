"""Models and tokenizers by name: a hub id or a folder.

Weights come from safetensors only. Full fine-tuning keeps them in float32, whatever the files
hold, since a bfloat16 weight cannot take updates as small as a learning rate of 1e-6 makes;
mixed precision (``bf16``) still computes in bfloat16.

Not here: making a model ready to train (``setup``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.errors import ModelError


def load_model(source: str, args: CPOConfig, *, adapted: bool) -> nn.Module:
    """A causal language model with its weights.

    Args:
        source: hub id or folder.
        args: ``model_init_kwargs`` and ``trust_remote_code`` are used.
        adapted: an adapter will be trained, the weights themselves stay frozen.

    Returns:
        The model, on the CPU unless ``model_init_kwargs`` say otherwise.

    Raises:
        ModelError: CP301 if it cannot be loaded.
    """
    options: dict[str, Any] = {
        "dtype": "auto" if adapted else "float32",
        "use_safetensors": True,
        "trust_remote_code": args.trust_remote_code,
        **_init_kwargs(args),
    }
    if options["dtype"] is None:
        del options["dtype"]
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError("CP301", f"{source}: {why_not(source, error)}") from error
    return model


def load_tokenizer(source: str, args: CPOConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model.

    Args:
        source: hub id or folder; empty for a model made in memory.
        args: the ``revision`` in ``model_init_kwargs`` and ``trust_remote_code`` are used.

    Raises:
        ModelError: CP301 if it cannot be loaded.
    """
    if not source:
        raise ModelError(
            "CP301", "a model made in memory has no tokenizer of its own; pass processing_class."
        )
    options = {"trust_remote_code": args.trust_remote_code}
    revision = _init_kwargs(args).get("revision")
    if revision is not None:
        options["revision"] = revision
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError("CP301", f"no tokenizer at {source}: {why_not(source, error)}") from error


def _init_kwargs(args: CPOConfig) -> dict[str, Any]:
    # the option may be a JSON string; the configuration has parsed it by now
    return args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}


def why_not(source: str, error: Exception) -> str:
    """One line on why a model or tokenizer did not load.

    Args:
        source: what was asked for.
        error: what the library raised.
    """
    first_line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    folder = Path(source)
    if folder.is_dir():
        files = sorted(path.name for path in folder.iterdir())
        return f"{first_line} (the folder holds: {', '.join(files[:8]) or 'nothing'})"
    return first_line
