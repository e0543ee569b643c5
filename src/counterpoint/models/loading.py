"""Models and tokenizers by name: hub id, folder or GGUF file; what cannot be trained is refused.

1. Weights come from safetensors files only, unless ``allow_pickle`` says otherwise, and a weight
   that the files lack is an error: a head that starts at random would train without a word.
2. What comes with a model is data: its code, and an adapter that it names, are refused.
3. Each check that needs no weights is made before any weight is read; what a configuration may
   ask for (``described``) before anything is built.

Not here: what lies in a folder (``folders``) or in a GGUF file (``gguf_files``), in which precision
weights are held (``weights``),
making a model ready to train (``preparing``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from counterpoint.config import CPOConfig
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.data.bounds import panics_caught
from counterpoint.data.processors import is_processor, tokenizer_in
from counterpoint.engine.at_load import parts_filled
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.engine.lost_rank import is_lost_rank
from counterpoint.errors import (
    ConfigError,
    CounterpointError,
    ModelError,
    SetupError,
    first_line,
    kind_and_line,
)
from counterpoint.forward.sights import SIGHTS
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger, quiet_calls
from counterpoint.models.described import (
    WeightsFound,
    read_described,
    read_object,
    refuse_code,
    refuse_unbounded,
    weights_of,
)
from counterpoint.models.family import Family, family_of
from counterpoint.models.folders import (
    check_model_folder,
    check_tokenizer_folder,
    folder_named,
    holds_an_adapter,
    is_pickled,
)
from counterpoint.models.gguf_files import (
    check_gguf,
    dequantized,
    dequantizing,
    gguf_config,
    gguf_error,
    gguf_named,
    gguf_tokenizer,
    own_tokenizer_named,
    source_arguments,
)
from counterpoint.models.quantized import compute_one_way, refuse_twice_quantized
from counterpoint.models.weights import WeightsPolicy, init_keywords

_NOT_PICKLED = "thus cannot be loaded with `safetensors`"
_HAS_CODE = "custom code"
"""What transformers says of a model without safetensors, and of one that brings code."""

_OF_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Files of which a processor's folder has one."""

OURS = {
    "trust_remote_code": "the option trust_remote_code",
    "allow_all_kernels": "the option trust_remote_code",
    "use_safetensors": "the option allow_pickle",
    "weights_only": "the option allow_pickle",
    "output_loading_info": "nobody: it is always looked at",
    "adapter_kwargs": "lora_r, or a PEFT model from a script",
    "state_dict": "a model's files",
    "gguf_file": "the option model, which names the file",
}
"""Arguments of from_pretrained that are not ``model_init_kwargs``, and what gives them instead."""


def load_config(source: str, args: CPOConfig, *, from_scratch: bool = False) -> PretrainedConfig:
    """The configuration of a model, once it is known to be one that can be trained.

    Args:
        source: hub id, folder or GGUF file.
        args: ``trust_remote_code`` and the ``revision`` in ``model_init_kwargs`` are used.
        from_scratch: the folder need not hold weights.

    Raises:
        ModelError: CP301 for what is no model, CP306 for a kind that is not supported, CP310 for
            pickled weights, CP311 for a model that brings code, CP315 for one that asks for more
            than any model has, or than its files hold.
        SetupError: CP521 for a checkpoint with files that its manifest does not list; CP502, CP530
            to CP533 for GGUF files that cannot be loaded.
        ConfigError: CP104 for ``model_init_kwargs`` that are not theirs to give; CP104 and CP105
            for what no GGUF file can be given.
    """
    file = gguf_named(source)
    if file is not None:
        return _config_of_gguf(file, source, args)
    folder = folder_named(source, "model")
    _check_keywords(args)
    if folder:
        check_model_folder(folder, from_scratch, args.allow_pickle)
    _check_described(source, folder, args, from_scratch)
    try:
        if not folder and find_adapter_config_file(source, revision=_revision(args)):
            raise holds_an_adapter(source)
        config = AutoConfig.from_pretrained(
            source, revision=_revision(args), trust_remote_code=args.trust_remote_code
        )
    except ModelError:
        raise
    except Exception as error:
        raise _unloadable(source, "configuration", folder, error) from error
    _refuse_family(config, source)
    refuse_twice_quantized(config, source, args)
    return config


def described_files(source: str, args: CPOConfig) -> tuple[Path | None, Mapping[str, Any]]:
    """The folder of a model's files, if it is one, and its ``config.json`` as it is written.

    Args:
        source: as for ``load_config``; of a GGUF file nothing is said.
        args: the ``revision`` in ``model_init_kwargs`` is used.
    """
    if gguf_named(source) is not None:
        return None, {}
    folder = folder_named(source, "model")
    return folder, read_described(source, folder, _revision(args))


def _config_of_gguf(file: Path, source: str, args: CPOConfig) -> PretrainedConfig:
    _check_keywords(args)
    header = check_gguf(file, args)
    try:
        config = gguf_config(file)
    except Exception as error:
        raise gguf_error(file, header, error) or _unloadable(
            source, "configuration", file.parent, error
        ) from error
    weights = WeightsFound(file.stat().st_size, sum(header.types.values()))
    refuse_unbounded(json.loads(config.to_json_string(use_diff=False)), source, weights)
    _refuse_family(config, source)
    return config


def _refuse_family(config: PretrainedConfig, source: str) -> None:
    refusal = family_of(config).refusal
    if refusal:
        raise ModelError("CP306", f"{source} ({config.model_type}) {refusal}")


def load_tokenizer(
    source: str, args: CPOConfig, *, of_model: bool = True, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer, with another chat template if one is given.

    Args:
        source: hub id, folder or GGUF file.
        args: ``trust_remote_code`` and the ``revision`` in ``model_init_kwargs`` are used.
        of_model: the source is the model's own, so that its revision counts.
        chat_template: file with a template in Jinja.

    Raises:
        ModelError: CP301 where there is no tokenizer or no such template, CP315 for a model's
            configuration beside it that asks for more than any model has.
        SetupError: CP502 where it needs a package that is missing; CP530 to CP532 as for a model.
    """
    called = own_tokenizer_named(source)
    file = called.get("gguf_file")
    described: Mapping[str, Any] = {}
    if file is not None:  # a configuration beside it is another model's, or the file's own
        check_gguf(Path(file))
        folder: Path | None = Path(file).parent
    else:
        folder = folder_named(source, "tokenizer")
        described = _beside_tokenizer(source, folder, args, of_model)
    options = {
        "revision": _revision(args) if of_model else "main",
        "trust_remote_code": args.trust_remote_code,
    }
    try:
        with panics_caught(), _told("tokenizer", source):
            processor = _processor(source, described, folder, options)
            tokenizer = processor and tokenizer_in(processor)
            tokenizer = tokenizer or (
                gguf_tokenizer(Path(file), source)
                if file is not None
                else AutoTokenizer.from_pretrained(**called, **options)
            )
    except CounterpointError:
        raise
    except ImportError as error:
        raise SetupError(
            "CP502", f"the tokenizer of {source} needs it: {first_line(error)}"
        ) from error
    except Exception as error:
        raise _unloadable(source, "tokenizer", folder, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError("CP301", f"the tokenizer of {source} has no vocabulary.")
    if chat_template:
        tokenizer.chat_template = _read_template(chat_template)
        if processor is not None:
            processor.chat_template = tokenizer.chat_template
    return tokenizer


def _beside_tokenizer(
    source: str, folder: Path | None, args: CPOConfig, of_model: bool
) -> Mapping[str, Any]:
    """The configuration beside a tokenizer, bounded."""
    if folder:
        check_tokenizer_folder(folder, of_model)
    # transformers may make the model's configuration to find the kind of tokenizer
    described = read_described(source, folder, _revision(args) if of_model else "main")
    refuse_unbounded(described, source, None)
    return described


def _processor(
    source: str, described: Mapping[str, Any], folder: Path | None, named: Mapping[str, Any]
) -> Any:
    """The processor of a model that sees; None of another, and where there is a tokenizer alone."""
    # beside an adapter, or by itself, it has no configuration of a model that would say so
    alone = not described and folder and any((folder / one).is_file() for one in _OF_PROCESSORS)
    if not alone and described.get("model_type") not in SIGHTS:
        return None
    try:
        processor = AutoProcessor.from_pretrained(source, **named)
    except OSError:  # what it is made of is not there; the tokenizer says what else is wrong
        return None
    except (ImportError, ValueError) as error:
        # transformers says ValueError where a part of a processor has no form without torchvision
        if isinstance(error, ValueError) and "torchvision" not in str(error):
            if alone:  # of sounds, or of a kind that is not known: the tokenizer is read by itself
                return None
            raise
        raise SetupError(
            "CP502",
            f"the processor of {source} needs a package that is missing: "
            f"{first_line(error).partition('. ')[0]}. {installing(EXTRAS['vision'])}",
        ) from error
    return processor if is_processor(processor) else None


def load_model(
    source: str,
    args: CPOConfig,
    policy: WeightsPolicy | None = None,
    *,
    family: Family | None = None,
) -> PreTrainedModel:
    """A model with its weights.

    Args:
        source: hub id, folder or GGUF file.
        args: ``model_init_kwargs``, ``stochastic_rounding``, ``allow_pickle`` and
            ``trust_remote_code`` are used.
        policy: how its weights are held; None: as in a run that trains all of them.
        family: whose class loads it; None: that of the model's configuration.

    Raises:
        ModelError: CP301 where the weights cannot be read or are not all there, CP310 where they
            are pickled, CP311 where the model brings code.
        SetupError: CP502 where they need a package that is missing.
    """
    keywords = (policy or WeightsPolicy.of(args)).keywords(args)
    called, file = source_arguments(source), gguf_named(source)
    header = None if file is None else check_gguf(file, args)
    if header is not None:
        keywords |= dequantizing()
        logger().info("%s is dequantised while it is loaded (%s)", source, header.said())
    try:
        with _told("weights", source), parts_filled(shards=shards_at_load(args)):
            if family is None:
                family = family_of(
                    AutoConfig.from_pretrained(
                        **called,
                        revision=_revision(args),
                        trust_remote_code=args.trust_remote_code,
                    )
                )
            model, report = family.auto_class.from_pretrained(
                **called,
                trust_remote_code=args.trust_remote_code,
                # not False, which would prefer pickles; and tensors only, whatever the file
                use_safetensors=None if args.allow_pickle else True,
                weights_only=True,
                output_loading_info=True,
                **keywords,
            )
    except ImportError as error:
        raise SetupError("CP502", f"{source} needs it: {first_line(error)}") from error
    except Exception as error:
        if is_lost_rank(error):  # ranks meet where each loads its own part
            raise
        if file is not None and header is not None and (known := gguf_error(file, header, error)):
            raise known from error
        folder = folder_named(source, "model") if file is None else file.parent
        raise _unloadable(source, "weights", folder, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            "CP301",
            f"{source} lacks {len(missing)} of its weights ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); they would start at random. Is it a model "
            "of another task, or an incomplete download?",
        )
    if header is not None:
        dequantized(model, source, header)
    compute_one_way(model)
    return model


@contextmanager
def _told(what: str, source: str) -> Iterator[None]:
    """Tell of what is loaded; where it may have to be fetched, the hub's own bars do."""
    bars = transformers_logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        stack.enter_context(quiet_calls())
        if not bars or Path(source).expanduser().exists():
            stack.enter_context(without_bars())
            stack.enter_context(phase(f"loading the {what} of {source}"))
        yield


def random_model(
    source: str, args: CPOConfig, config: PretrainedConfig, policy: WeightsPolicy | None = None
) -> PreTrainedModel:
    """A model with random weights, the same ones for the same seed.

    Args:
        source: hub id or folder, for messages.
        args: ``seed``, ``model_init_kwargs``, ``stochastic_rounding`` and ``trust_remote_code``
            are used.
        config: what ``load_config`` returned.
        policy: how its weights are held; None: as in a run that trains all of them.

    Raises:
        ModelError: CP301 where the configuration describes no model.
        ConfigError: CP104 where it would have to be loaded in shards.
    """
    if shards_at_load(args):
        raise ConfigError(
            "CP104",
            "from_scratch makes the whole model on each rank, and on CPUs a model comes in shards "
            "from its files only. Leave fsdp out, or make the folder of weights first.",
        )
    keywords = init_keywords(args)
    keywords.pop("revision", None)
    keywords["dtype"] = (policy or WeightsPolicy.of(args)).made(config)
    set_seed(args.seed)
    try:
        with phase(f"making random weights for {source}"):
            return family_of(config).auto_class.from_config(
                config, trust_remote_code=args.trust_remote_code, **keywords
            )
    except Exception as error:
        raise ModelError(
            "CP301", f"the config.json of {source} makes no model: {kind_and_line(error)}"
        ) from error


def _check_keywords(args: CPOConfig) -> None:
    keywords = init_keywords(args)
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


def _revision(args: CPOConfig) -> str:
    return str(init_keywords(args).get("revision", "main"))


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            "CP301", f"chat_template {path} cannot be read: {first_line(error)}"
        ) from error


def _unloadable(source: str, what: str, folder: Path | None, error: Exception) -> ModelError:
    """The error of what a library could not load."""
    if _NOT_PICKLED in str(error):
        return is_pickled(source)
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
            f"{source} is no folder here, and the hub gave no {what} for it: {first_line(error)} "
            "Check the spelling, the network, and hf auth login for private models."
        )
    return f"the {what} of {source} cannot be read: {kind_and_line(error)}"
