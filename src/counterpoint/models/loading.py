"""Models and tokenizers by name: a hub id or a folder; what cannot be trained is refused.

1. Weights come from safetensors files only, unless ``allow_pickle`` says otherwise, and a weight
   that the files lack is an error: a head that starts at random would train without a word.
2. What comes with a model is data: its code, and an adapter that it names, are refused.
3. Each check that needs no weights is made before any weight is read; what a configuration may
   ask for (``described``) before anything is built.
4. Full fine-tuning keeps float32 weights, whatever the files hold: a bfloat16 weight cannot take
   updates as small as a learning rate of 1e-6 makes, unless ``stochastic_rounding`` is on.
   ``bf16`` still computes in bfloat16.

Not here: making a model ready to train (``preparing``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto import modeling_auto
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from counterpoint.checkpoint.manifest import MANIFEST, read_manifest, refuse_unlisted
from counterpoint.config import CPOConfig
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.data.bounds import panics_caught
from counterpoint.errors import ConfigError, ModelError, SetupError
from counterpoint.log import quiet_calls
from counterpoint.models.described import (
    read_described,
    read_object,
    refuse_code,
    refuse_unbounded,
    weights_of,
)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
_NOT_PICKLED = "thus cannot be loaded with `safetensors`"
_HAS_CODE = "custom code"
"""What transformers says of a model without safetensors, and of one that brings code."""

OURS = {
    "trust_remote_code": "the option trust_remote_code",
    "allow_all_kernels": "the option trust_remote_code",
    "use_safetensors": "the option allow_pickle",
    "weights_only": "the option allow_pickle",
    "output_loading_info": "nobody: it is always looked at",
    "adapter_kwargs": "lora_r, or a PEFT model from a script",
    "state_dict": "a model's files",
}
"""Arguments of from_pretrained that are not ``model_init_kwargs``, and what gives them instead."""

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def load_config(source: str, args: CPOConfig, *, from_scratch: bool = False) -> PretrainedConfig:
    """The configuration of a model, once it is known to be one that can be trained.

    Args:
        source: hub id or folder.
        args: ``trust_remote_code`` and the ``revision`` in ``model_init_kwargs`` are used.
        from_scratch: the folder need not hold weights.

    Raises:
        ModelError: CP301 for what is no model, CP306 for a kind that is not supported, CP310 for
            pickled weights, CP311 for a model that brings code, CP315 for one that asks for more
            than any model has, or than its files hold.
        SetupError: CP521 for a checkpoint with files that its manifest does not list.
        ConfigError: CP104 for ``model_init_kwargs`` that are not theirs to give.
    """
    folder = _folder(source, "model")
    _check_keywords(args)
    if folder:
        _check_model_folder(folder, from_scratch, args.allow_pickle)
    _check_described(source, folder, args, from_scratch)
    try:
        if not folder and find_adapter_config_file(source, revision=_revision(args)):
            raise _is_adapter(source)
        config = AutoConfig.from_pretrained(
            source, revision=_revision(args), trust_remote_code=args.trust_remote_code
        )
    except ModelError:
        raise
    except Exception as error:
        raise _unloadable(source, "configuration", folder, error) from error
    reason = _unsupported(config)
    if reason:
        raise ModelError("CP306", f"{source} ({config.model_type}) {reason}")
    return config


def load_tokenizer(
    source: str, args: CPOConfig, *, of_model: bool = True, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer, with another chat template if one is given.

    Args:
        source: hub id or folder.
        args: ``trust_remote_code`` and the ``revision`` in ``model_init_kwargs`` are used.
        of_model: the source is the model's own, so that its revision counts.
        chat_template: file with a template in Jinja.

    Raises:
        ModelError: CP301 where there is no tokenizer or no such template, CP315 for a model's
            configuration beside it that asks for more than any model has.
        SetupError: CP502 where it needs a package that is missing.
    """
    folder = _folder(source, "tokenizer")
    if folder:
        _check_tokenizer_folder(folder, of_model)
    # transformers may make the model's configuration to find the kind of tokenizer
    described = read_described(source, folder, _revision(args) if of_model else "main")
    refuse_unbounded(described, source, None)
    try:
        with panics_caught(), _told("tokenizer", source):
            tokenizer = AutoTokenizer.from_pretrained(
                source,
                revision=_revision(args) if of_model else "main",
                trust_remote_code=args.trust_remote_code,
            )
    except ImportError as error:
        raise SetupError("CP502", f"the tokenizer of {source} needs it: {_line(error)}") from error
    except Exception as error:
        raise _unloadable(source, "tokenizer", folder, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError("CP301", f"the tokenizer of {source} has no vocabulary.")
    if chat_template:
        tokenizer.chat_template = _read_template(chat_template)
    return tokenizer


def load_model(source: str, args: CPOConfig, *, adapted: bool) -> PreTrainedModel:
    """A causal language model with its weights, float32 unless they stay frozen.

    With ``stochastic_rounding`` they are bfloat16.

    Args:
        source: hub id or folder.
        args: ``model_init_kwargs``, ``stochastic_rounding``, ``allow_pickle`` and
            ``trust_remote_code`` are used.
        adapted: an adapter will be trained; the weights keep the precision of their files.

    Raises:
        ModelError: CP301 where the weights cannot be read or are not all there, CP310 where they
            are pickled, CP311 where the model brings code.
        SetupError: CP502 where they need a package that is missing.
    """
    keywords = _keywords(args)
    keywords.setdefault("dtype", "auto" if adapted else _trained_dtype(args))
    try:
        with _told("weights", source):
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                trust_remote_code=args.trust_remote_code,
                # not False, which would prefer pickles; and tensors only, whatever the file
                use_safetensors=None if args.allow_pickle else True,
                weights_only=True,
                output_loading_info=True,
                **keywords,
            )
    except ImportError as error:
        raise SetupError("CP502", f"{source} needs it: {_line(error)}") from error
    except Exception as error:
        raise _unloadable(source, "weights", _folder(source, "model"), error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            "CP301",
            f"{source} lacks {len(missing)} of its weights ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); they would start at random. Is it a model "
            "of another task, or an incomplete download?",
        )
    return model


@contextmanager
def _told(what: str, source: str) -> Iterator[None]:
    """Tell of what is loaded; where it may have to be fetched, the hub's own bars do."""
    bars = transformers_logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        stack.enter_context(quiet_calls())
        if not bars or Path(source).expanduser().is_dir():
            stack.enter_context(without_bars())
            stack.enter_context(phase(f"loading the {what} of {source}"))
        yield


def refuse_pickled_adapter(folder: Path, args: CPOConfig) -> None:
    """Refuse an adapter without safetensors: PEFT would read its pickle without a word.

    Args:
        folder: of the adapter.
        args: ``allow_pickle`` is used.

    Raises:
        ModelError: CP310.
    """
    if not (folder / "adapter_model.safetensors").is_file() and not args.allow_pickle:
        raise _is_pickled(folder)


def random_model(source: str, args: CPOConfig, config: PretrainedConfig) -> PreTrainedModel:
    """A causal language model with random weights, the same ones for the same seed.

    Args:
        source: hub id or folder, for messages.
        args: ``seed``, ``model_init_kwargs``, ``stochastic_rounding`` and ``trust_remote_code``
            are used.
        config: what ``load_config`` returned.

    Raises:
        ModelError: CP301 where the configuration describes no model.
    """
    keywords = _keywords(args)
    keywords.pop("revision", None)
    keywords.setdefault("dtype", _trained_dtype(args))
    set_seed(args.seed)
    try:
        with phase(f"making random weights for {source}"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=args.trust_remote_code, **keywords
            )
    except Exception as error:
        reason = f"{type(error).__name__}: {_line(error)}"
        raise ModelError(
            "CP301", f"the config.json of {source} makes no model: {reason}"
        ) from error


def _folder(source: str, what: str) -> Path | None:
    """The folder that a model or tokenizer lies in; None if the name is one of the hub's."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(
            "CP301", f"{what} {source} is a file; name the folder it lies in, or a hub id."
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise ModelError("CP301", f"{what} {source}: there is no such folder.")
    return None


def _check_keywords(args: CPOConfig) -> None:
    keywords = _keywords(args)
    for name, instead in OURS.items():
        if name in keywords:
            raise ConfigError(
                "CP104",
                f"model_init_kwargs holds {name}, which is given by {instead}.",
            )
    refuse_code(keywords, "model_init_kwargs", trusted=args.trust_remote_code)


def _check_described(source: str, folder: Path | None, args: CPOConfig, from_scratch: bool) -> None:
    described = read_described(source, folder, _revision(args))
    weights = weights_of(folder) if folder and not from_scratch else None
    refuse_unbounded(described, source, weights)
    refuse_code(described, source, trusted=args.trust_remote_code)
    if folder:
        generation = read_object(folder / "generation_config.json")
        refuse_code(generation, source, trusted=args.trust_remote_code)


def _is_adapter(source: object) -> ModelError:
    # transformers would load whichever base model it names, and put it on
    return ModelError(
        "CP301", f"{source} holds a LoRA adapter, not a model; merge it into its base model first."
    )


def _check_model_folder(folder: Path, from_scratch: bool, allow_pickle: bool) -> None:
    found = {path.name for path in folder.iterdir()}
    if MANIFEST in found:
        _check_checkpoint(folder)
    if _ADAPTER in found:
        raise _is_adapter(folder)
    if "config.json" not in found:
        raise ModelError(
            "CP301",
            f"{folder} is no model: it has no config.json. A model's folder holds config.json, "
            "the weights as safetensors and the tokenizer; with from_scratch, no weights.",
        )
    if from_scratch:
        return
    if found.intersection(WEIGHTS):
        _check_shards(folder, found)
        return
    if found.intersection(PICKLES):
        if allow_pickle:
            return
        raise _is_pickled(folder)
    raise ModelError(
        "CP301",
        f"{folder} has a config.json but no weights ({WEIGHTS[0]}); add --from_scratch to start "
        "from random weights.",
    )


def _check_checkpoint(folder: Path) -> None:
    """A checkpoint taken for a model has no file beside those that it was saved with."""
    try:
        manifest = read_manifest(folder)
    except SetupError:  # a file of that name that is not ours, or too old or damaged to tell
        return
    refuse_unlisted(folder, manifest)


def _is_pickled(source: object) -> ModelError:
    return ModelError(
        "CP310",
        f"{source} has its weights as pickles, which can run code when opened; save them as "
        "safetensors with save_pretrained first, or set allow_pickle (--allow_pickle) if you trust "
        "whoever made them.",
    )


def _check_shards(folder: Path, found: set[str]) -> None:
    index = folder / WEIGHTS[1]
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shards - found)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError("CP301", f"{index} is no index of weights: {_line(error)}") from error
    if WEIGHTS[0] in found:
        if shards <= {WEIGHTS[0]}:
            return
        raise ModelError(
            "CP301",
            f"{folder} holds two sets of weights: {WEIGHTS[0]}, and the {len(shards)} files that "
            f"{WEIGHTS[1]} names. Only one can be meant; move the other out of the folder.",
        )
    if missing:
        raise ModelError(
            "CP301",
            f"{folder} lacks {len(missing)} of {len(shards)} files of weights: {missing[0]}"
            f"{', ...' if len(missing) > 1 else ''}.",
        )


def _check_tokenizer_folder(folder: Path, of_model: bool) -> None:
    found = [path.name for path in folder.iterdir()]
    if any(name in _VOCABULARIES or name.endswith(".tiktoken") for name in found):
        return
    # transformers would make up a tokenizer without words from the model's config.json
    advice = "name one with --tokenizer" if of_model else "name another folder"
    raise ModelError(
        "CP301", f"{folder} holds no tokenizer (no tokenizer.json or vocabulary); {advice}."
    )


def _unsupported(config: PretrainedConfig) -> str | None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder; only decoder-only language models are supported."
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return None
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in causal:
        return "is no causal language model; only decoder-only language models are supported."
    if causal[kind] == modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind):
        return "reads images too; only text models are supported."
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind in masked and not getattr(config, "is_decoder", False):
        return "sees the words after a word; only decoder-only language models are supported."
    return None


def _keywords(args: CPOConfig) -> dict[str, Any]:
    keywords = dict(args.model_init_kwargs) if isinstance(args.model_init_kwargs, dict) else {}
    if "torch_dtype" in keywords:
        keywords["dtype"] = keywords.pop("torch_dtype")
    return keywords


def _trained_dtype(args: CPOConfig) -> str:
    return "bfloat16" if args.stochastic_rounding else "float32"


def _revision(args: CPOConfig) -> str:
    return str(_keywords(args).get("revision", "main"))


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError("CP301", f"chat_template {path} cannot be read: {_line(error)}") from error


def _unloadable(source: str, what: str, folder: Path | None, error: Exception) -> ModelError:
    """The error of what a library could not load."""
    if _NOT_PICKLED in str(error):
        return _is_pickled(source)
    if _HAS_CODE in str(error):
        return ModelError(
            "CP311",
            f"the {what} of {source} comes with code of its own, which would run here with all "
            "your rights. Read it; then set trust_remote_code (--trust_remote_code).",
        )
    return ModelError("CP301", _why(source, what, folder, error))


def _why(source: str, what: str, folder: Path | None, error: Exception) -> str:
    if folder is None and isinstance(error, OSError):
        return (
            f"{source} is no folder here, and the hub gave no {what} for it: {_line(error)} "
            "Check the spelling, the network, and hf auth login for private models."
        )
    return f"the {what} of {source} cannot be read: {type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
