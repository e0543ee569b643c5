"""What the values of options have to be, alone and beside each other.

Each check takes the options as they were given, and raises with the code of what is wrong.

Not here: what an option means (``options``), and what is refused whatever else is set
(``refused``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from counterpoint.config.refused import REFUSED, is_refused
from counterpoint.engine import FSDP_1
from counterpoint.errors import ConfigError
from counterpoint.forward.layouts import AUTO, LAYOUTS
from counterpoint.objectives import INITIAL, LOSSES, no_gap, reading
from counterpoint.picture import MOST_PIXELS_EVER
from counterpoint.preference_row import INVALID_ROWS, TRAIN_TURNS

NLL_REDUCTIONS = ("token_mean", "sequence_sum")
TRUNCATIONS = ("completion_end", "prompt_start", "prompt_end", "drop")
NONFINITE = ("raise", "skip")
ON_ALARM = ("warn", "stop")
ADAMW = ("adamw_torch", "adamw_torch_fused")
"""Names of the plain AdamW, which an option may replace by a variant."""


def _at_least_zero(x: float) -> bool:
    return 0 <= x < math.inf


def _whole_from_one(x: float) -> bool:
    return x >= 1 and x == int(x)


RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = MappingProxyType(
    {
        "beta": (lambda x: 0 < x < math.inf, "a finite number above 0"),
        "cpo_alpha": (_at_least_zero, "a finite number, at least 0"),
        "rpo_alpha": (_at_least_zero, "a finite number, at least 0"),
        "dpop_lambda": (_at_least_zero, "a finite number, at least 0"),
        "simpo_gamma": (_at_least_zero, "a finite number, at least 0"),
        "gamma_beta_ratio": (_at_least_zero, "a finite number, at least 0"),
        "router_aux_loss_coef": (_at_least_zero, "a finite number, at least 0"),
        "alpha": (math.isfinite, "a finite number"),
        "learning_rate": (_at_least_zero, "a finite number, at least 0"),
        "weight_decay": (_at_least_zero, "a finite number, at least 0"),
        "max_grad_norm": (_at_least_zero, "a finite number, at least 0 (0: no clipping)"),
        "adam_beta1": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "adam_beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "adam_epsilon": (lambda x: 0 < x < math.inf, "a finite number above 0"),
        "num_train_epochs": (lambda x: 0 < x < math.inf, "a finite number above 0"),
        "label_smoothing": (lambda x: 0 <= x < 0.5, "in [0, 0.5)"),
        "ld_alpha": (lambda x: 0 <= x <= 1, "in [0, 1]"),
        "arpo_scale": (lambda x: 0 < x < math.inf, "a finite number above 0"),
        "arpo_eta": (_at_least_zero, "a finite number, at least 0"),
        "max_length": (lambda x: x >= 2 and x == int(x), "a whole number, at least 2"),
        "max_completion_length": (_whole_from_one, "a whole number, at least 1"),
        "dataset_num_proc": (_whole_from_one, "a whole number, at least 1"),
        "max_micro_batch_tokens": (_whole_from_one, "a whole number, at least 1"),
        "pairs_per_step": (_whole_from_one, "a whole number, at least 1"),
        "fsdp_replicas": (_whole_from_one, "a whole number, at least 1"),
        "checkpointing_share": (
            lambda x: 0 < x <= 1,
            "in (0, 1] (gradient_checkpointing=False turns it off)",
        ),
        "max_image_pixels": (
            lambda x: 1 <= x <= MOST_PIXELS_EVER and x == int(x),
            "a whole number, 1 to 134,217,728",
        ),
        "picture_cache_gb": (_at_least_zero, "a finite number, at least 0"),
        "stream_shards": (_whole_from_one, "a whole number, at least 1"),
        "monitor_steps": (lambda x: x >= 0 and x == int(x), "a whole number, at least 0 (0: off)"),
        "early_stopping_patience": (_whole_from_one, "a whole number, at least 1"),
        "early_stopping_threshold": (_at_least_zero, "a finite number, at least 0"),
        "constraint_calibration": (_whole_from_one, "a whole number, at least 1"),
        "eval_samples": (_whole_from_one, "a whole number, at least 1"),
        "eval_sample_tokens": (_whole_from_one, "a whole number, at least 1"),
        "generation_num_beams": (_whole_from_one, "a whole number, at least 1"),
        "eval_sample_temperature": (_at_least_zero, "a finite number, at least 0"),
        "per_device_train_batch_size": (_whole_from_one, "a whole number, at least 1"),
        "per_device_eval_batch_size": (_whole_from_one, "a whole number, at least 1"),
        "gradient_accumulation_steps": (_whole_from_one, "a whole number, at least 1"),
    }
)
"""Option -> (whether a number is in range, the range in words)."""

UNSET_ALLOWED = (
    "ld_alpha",
    "rpo_alpha",
    "gamma_beta_ratio",
    "router_aux_loss_coef",
    "max_length",
    "max_completion_length",
    "dataset_num_proc",
    "max_micro_batch_tokens",
    "pairs_per_step",
    "fsdp_replicas",
    "early_stopping_patience",
)

SAMPLING = (
    "eval_samples",
    "eval_sample_tokens",
    "generation_num_beams",
    "eval_sample_temperature",
)
"""Options that only say how ``generate_during_eval`` writes."""


def those(names: list[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def parsed(name: str, text: str, kind: type[Any]) -> Any:
    """An option that is given as JSON.

    Args:
        name: of the option.
        text: as it was given.
        kind: of what it should hold, ``dict`` or ``list``.

    Raises:
        ConfigError: CP103 for a text that holds something else.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, kind):
        raise ConfigError(
            "CP103", f"{name}={text!r} should be a JSON {'object' if kind is dict else 'list'}."
        )
    return value


def check_choices(config: Any) -> None:
    """Raise CP102 for a word that an option does not take.

    Args:
        config: a ``CPOConfig``, as in every check.
    """
    choices = {
        "loss_type": tuple(LOSSES),
        "nll_reduction": NLL_REDUCTIONS,
        "truncation": TRUNCATIONS,
        "train_turns": TRAIN_TURNS,
        "invalid_rows": INVALID_ROWS,
        "nonfinite": NONFINITE,
        "on_alarm": ON_ALARM,
        "layout": (AUTO, *LAYOUTS),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(
                "CP102",
                f"{name}={getattr(config, name)!r} is not one of {', '.join(allowed)}.",
            )


def check_ranges(config: Any) -> None:
    """Raise CP103 for a number outside its range."""
    for name, (holds, expected) in RANGES.items():
        value = getattr(config, name)
        if value is None and name in UNSET_ALLOWED:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and holds(value)):
            raise ConfigError("CP103", f"{name}={value!r} should be {expected}.")


def check_refused(config: Any) -> None:
    """Raise CP105 for an option that could only mislead."""
    for name, (passing, reason) in REFUSED.items():
        value = getattr(config, name, passing)  # releases of transformers differ in options
        if is_refused(name, value):
            raise ConfigError("CP105", f"{name}={value!r} is refused: {reason}.")
    if config.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            "CP105",
            f"train_sampling_strategy={config.train_sampling_strategy!r} is refused: choosing "
            "pairs by length would change what a step is made of; use 'random' or "
            "'sequential'.",
        )


def check_sharding(config: Any) -> None:
    """Raise CP105 for a way to shard that is not FSDP2."""
    fsdp, given = config.fsdp, config.fsdp_config
    older = str(fsdp) == "1" or (isinstance(given, Mapping) and _version(given) == "1")
    if older:
        raise ConfigError("CP105", f"fsdp={fsdp!r} with fsdp_config={given!r}: {FSDP_1}.")
    if isinstance(given, Mapping) and (given.get("xla") or given.get("fsdp_xla")):
        raise ConfigError("CP105", f"fsdp_config={given!r}: sharding through XLA is not FSDP2.")


def _version(given: Mapping[str, Any]) -> str:
    return str(given.get("version", given.get("fsdp_version", 2)))


_OF_FEW = ("ld_alpha", "arpo_scale", "arpo_eta", "reference", "rpo_alpha", "dpop_lambda")
"""Options that few losses read."""


def _check_loss(config: Any) -> None:
    """What the loss does not read, by its row of the table."""
    row, of = LOSSES[config.loss_type], f"loss_type={config.loss_type!r}"
    if config.gamma_beta_ratio is not None and not row.reads("gamma_beta_ratio"):
        raise ConfigError(
            "CP104",
            f"gamma_beta_ratio={config.gamma_beta_ratio} has no meaning with {of}; only "
            f"{those(reading('gamma_beta_ratio'))} have a margin times beta.",
        )
    if config.gamma_beta_ratio is not None and config.simpo_gamma not in (
        0.5,
        config.gamma_beta_ratio * config.beta,
    ):
        raise ConfigError(
            "CP104",
            f"gamma_beta_ratio={config.gamma_beta_ratio} with beta={config.beta} asks for a "
            f"margin of {config.gamma_beta_ratio * config.beta:g}, simpo_gamma for "
            f"{config.simpo_gamma:g}; give one of them.",
        )
    if config.simpo_gamma != 0.5 and not row.reads("simpo_gamma"):
        raise ConfigError(
            "CP104",
            f"simpo_gamma={config.simpo_gamma} would do nothing with {of}; only "
            f"{', '.join(reading('simpo_gamma'))} have a margin.",
        )
    if config.label_smoothing and not row.reads("label_smoothing"):
        raise ConfigError(
            "CP104",
            f"label_smoothing={config.label_smoothing} would do nothing with {of}; only "
            f"{', '.join(reading('label_smoothing'))} use it.",
        )
    if config.alpha and not row.reads("alpha"):
        raise ConfigError(
            "CP104",
            f"alpha={config.alpha} reshapes the log-probability reward, which {of} does not have.",
        )
    if not str(config.reference).strip():
        raise ConfigError(
            "CP103",
            f"reference={config.reference!r} should be {INITIAL}, or a model's id or folder.",
        )
    for name in _OF_FEW:
        value = getattr(config, name)
        if value != config.__dataclass_fields__[name].default and not row.reads(name):
            raise ConfigError(
                "CP104",
                f"{name}={value} would do nothing with {of}; it is for {those(reading(name))}.",
            )


def check_contradictions(config: Any) -> None:
    """Raise CP104 for options that contradict each other, or would do nothing."""
    _check_loss(config)
    if config.stochastic_rounding and config.fp16:
        raise ConfigError(
            "CP104", "stochastic_rounding is for bfloat16 weights; fp16=True contradicts it."
        )
    if config.stochastic_rounding and config.optim not in ADAMW:
        raise ConfigError(
            "CP104",
            f"stochastic_rounding brings its own AdamW, so that optim={config.optim!r} would "
            "not be used; leave one of them out.",
        )
    if config.stochastic_rounding and config.optim_args:
        raise ConfigError(
            "CP104",
            f"stochastic_rounding brings its own AdamW, so that optim_args={config.optim_args!r} "
            "would not be used; leave one of them out.",
        )
    _check_quantized(config)
    _check_levers(config)
    _check_samples(config)
    _check_patience(config)
    _check_constraints(config)
    longest = 512 if config.max_length is None else config.max_length
    most = config.max_completion_length
    # a source and a completion meet in no row; a model without an encoder refuses the option
    if most is not None and most >= longest and not config.is_encoder_decoder:
        raise ConfigError(
            "CP104",
            f"max_completion_length={most} leaves no room for a prompt within "
            f"max_length={longest}. An encoder-decoder has limits of their own for both: say "
            "is_encoder_decoder=True.",
        )


def _check_quantized(config: Any) -> None:
    if config.load_in_4bit and config.load_in_8bit:
        raise ConfigError("CP104", "load_in_4bit and load_in_8bit: give one of them.")
    if config.stochastic_rounding and (config.load_in_4bit or config.load_in_8bit):
        raise ConfigError(
            "CP104",
            "stochastic_rounding is for bfloat16 weights under training, but over quantised "
            "weights only an adapter trains, which is float32; leave one of them out.",
        )


OURS = {"every_n_layers": "checkpointing_share", "offload": "activation_offload"}
"""What transformers takes among the keywords of checkpointing -> our option for it."""


def _check_levers(config: Any) -> None:
    """Which layers are computed again is said in one place, on every release of transformers."""
    for option in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        keywords = getattr(config, option, None)
        given: Mapping[str, Any] = keywords if isinstance(keywords, Mapping) else {}
        for name in OURS:
            if name in given:
                raise ConfigError(
                    "CP105",
                    f"{option} with {name!r} is refused: releases of transformers differ in it, "
                    f"and no plan knows it; set {OURS[name]} instead.",
                )


def _check_samples(config: Any) -> None:
    if config.generate_during_eval:
        return
    for name in SAMPLING:
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise ConfigError(
                "CP104",
                f"{name}={getattr(config, name)} would do nothing without "
                "generate_during_eval=True; add that, or leave it out.",
            )


def _check_patience(config: Any) -> None:
    patience, threshold = config.early_stopping_patience, config.early_stopping_threshold
    if patience is None and threshold:
        raise ConfigError(
            "CP104",
            f"early_stopping_threshold={threshold:g} would do nothing without "
            "early_stopping_patience; add that, or leave it out.",
        )
    if patience is not None and config.eval_strategy == "no":
        raise ConfigError(
            "CP107",
            f"eval_strategy is missing: early_stopping_patience={patience} goes by what "
            'evaluations measure. Set eval_strategy="steps" and eval_steps, or "epoch".',
        )


def _check_constraints(config: Any) -> None:
    for name in ("constraint_calibration", "constraint_normalization"):
        default = config.__dataclass_fields__[name].default
        if not config.constrained_by and getattr(config, name) != default:
            raise ConfigError(
                "CP104",
                f"{name}={getattr(config, name)} would do nothing without constraints; add some, "
                "or leave it out.",
            )
    bounded = [one for one in config.constrained_by if one.row.of_texts]
    for one in bounded:
        if not config.generate_during_eval or config.eval_strategy == "no":
            raise ConfigError(
                "CP104",
                f"constraint {one.name} is measured on what the model writes at evaluations; "
                "set generate_during_eval=True and an eval_strategy.",
            )
        if not LOSSES[config.loss_type].has_gap:
            raise ConfigError(
                "CP104",
                f"constraint {one.name} takes a price off the margin of each pair, and "
                f"{no_gap(config.loss_type)}",
            )
        if one.bound is not None and not 0 < one.bound < config.eval_sample_tokens:
            raise ConfigError(
                "CP104",
                f"constraint {one.name}: bound={one.bound} should be above 0 and below "
                f"eval_sample_tokens={config.eval_sample_tokens}, at which texts are cut.",
            )
