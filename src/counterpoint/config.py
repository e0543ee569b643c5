"""CPOConfig: every option, one line of help with range and unit, contradictions refused here.

Names and defaults are those of TRL 1.16's ``CPOConfig`` on top of
``transformers.TrainingArguments``, so that a script changes its import and nothing else. What
Counterpoint adds is marked "Counterpoint:" in its help. Options that could only mislead here
are in ``REFUSED``, each with its reason; docs/options.md is generated from this file.

Not here: reading YAML or flags (``options``), and the arithmetic of a loss (``losses``).
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_bf16_gpu_available

from counterpoint.constraints import Constraint, read_constraints
from counterpoint.errors import ConfigError
from counterpoint.forward.layouts import AUTO, LAYOUTS
from counterpoint.masking import Mask
from counterpoint.metric_names import more_is_better
from counterpoint.objectives import DEFAULT_LOSS, LOSSES, reading
from counterpoint.old_options import modern, say

NLL_REDUCTIONS = ("token_mean", "sequence_sum")
TRUNCATIONS = ("completion_end", "prompt_start", "prompt_end", "drop")
INVALID_ROWS = ("raise", "drop")
NONFINITE = ("raise", "skip")
ON_ALARM = ("warn", "stop")
ADAMW = ("adamw_torch", "adamw_torch_fused")
"""Names of the plain AdamW, which an option may replace by a variant."""

REFUSED: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "accelerator_config": (
            None,
            "pairs are dealt to ranks and micro-batches here, so that a step stays the same "
            "function of its pairs; gradient_accumulation_steps accumulates",
        ),
        "auto_find_batch_size": (
            False,
            "it would change how many pairs make a step; lower per_device_train_batch_size and "
            "raise gradient_accumulation_steps instead: the gradient stays the same",
        ),
        "average_tokens_across_devices": (
            True,
            "a step is the same function of its pairs on any number of ranks, always",
        ),
        "batch_eval_metrics": (False, "metrics are running sums already"),
        "bf16_full_eval": (
            False,
            "it would cast the weights themselves; an evaluation computes in bf16 where training "
            "does",
        ),
        "dataloader_in_order": (
            True,
            "a step would be made of whichever pairs were ready first",
        ),
        "deepspeed": (None, "sharded engines are not supported yet; use DDP through torchrun"),
        "enable_jit_checkpoint": (
            False,
            "it would save in the middle of a step; counterpoint train saves after the step when "
            "SIGTERM comes, and so does trainer.end_after_step in a script",
        ),
        "eval_accumulation_steps": (
            None,
            "a few numbers a pair are all that an evaluation keeps; lower "
            "per_device_eval_batch_size or set max_micro_batch_tokens to save memory",
        ),
        "eval_do_concat_batches": (
            True,
            "compute_metrics gets the rewards of a whole set as one array, in the order of its "
            "rows",
        ),
        "eval_use_gather_object": (
            False,
            "what ranks hand each other are sums and a few numbers a pair only",
        ),
        "fp16_full_eval": (
            False,
            "it would cast the weights themselves; an evaluation computes in fp16 where training "
            "does",
        ),
        "fsdp": (None, "sharded engines are not supported yet; use DDP through torchrun"),
        "fsdp_config": (None, "sharded engines are not supported yet; use DDP through torchrun"),
        "ignore_data_skip": (
            False,
            "a run goes on after the pairs that it has trained on, and finding its place reads "
            "none of them",
        ),
        "include_for_metrics": ([], "there are no inputs or losses to pass to compute_metrics"),
        "is_encoder_decoder": (None, "only decoder-only language models are supported yet"),
        "label_names": (None, "the labels are the completions' tokens"),
        "label_smoothing_factor": (
            0.0,
            "it smooths over the vocabulary, which no preference loss does; label_smoothing "
            "smooths over the preference",
        ),
        "length_column_name": ("length", "pairs are never chosen by length"),
        "logging_nan_inf_filter": (
            False,
            "it hides non-finite losses; nonfinite='raise' or 'skip' deals with them",
        ),
        "neftune_noise_alpha": (
            None,
            "its noise depends on how far a batch is padded, so that a step would depend on how "
            "it is cut",
        ),
        "restore_callback_states_from_checkpoint": (
            False,
            "a run that goes on gives callbacks their states back, always",
        ),
        "save_on_each_node": (
            False,
            "a checkpoint is one folder that all ranks write; put output_dir on a file system that "
            "they share",
        ),
        "parallelism_config": (None, "only data parallelism is supported yet"),
    }
)
"""Option -> (the value that passes, why any other is refused)."""

_OF_FSDP = {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
"""What older releases of transformers make of an ``fsdp_config`` that nobody gave."""


def is_refused(name: str, value: Any) -> bool:
    """Whether an option of ``REFUSED`` is refused with a value.

    Args:
        name: one of ``REFUSED``.
        value: as given, or as transformers has resolved it.
    """
    passing = REFUSED[name][0]
    if name == "accelerator_config":
        value = _other_than(AcceleratorConfig().to_dict(), value)
    elif name == "fsdp_config":
        value = _other_than(_OF_FSDP, value)
    off = value is None or value is False or value in ([], {}, "")
    return bool(value != passing and (passing or not off))


def _other_than(defaults: Mapping[str, Any], value: Any) -> Any:
    """What a nested option says beyond its defaults; a file's name as it is."""
    given = value.to_dict() if isinstance(value, AcceleratorConfig) else value
    if not isinstance(given, Mapping):
        return given
    return {key: part for key, part in given.items() if part != defaults.get(key)}


def _at_least_zero(x: float) -> bool:
    return 0 <= x < math.inf


def _whole_from_one(x: float) -> bool:
    return x >= 1 and x == int(x)


RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = MappingProxyType(
    {
        "beta": (lambda x: 0 < x < math.inf, "a finite number above 0"),
        "cpo_alpha": (_at_least_zero, "a finite number, at least 0"),
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
        "max_length": (lambda x: x >= 2 and x == int(x), "a whole number, at least 2"),
        "max_completion_length": (_whole_from_one, "a whole number, at least 1"),
        "dataset_num_proc": (_whole_from_one, "a whole number, at least 1"),
        "max_micro_batch_tokens": (_whole_from_one, "a whole number, at least 1"),
        "monitor_steps": (lambda x: x >= 0 and x == int(x), "a whole number, at least 0 (0: off)"),
        "constraint_calibration": (_whole_from_one, "a whole number, at least 1"),
        "eval_samples": (_whole_from_one, "a whole number, at least 1"),
        "eval_sample_tokens": (_whole_from_one, "a whole number, at least 1"),
        "eval_sample_temperature": (_at_least_zero, "a finite number, at least 0"),
        "per_device_train_batch_size": (_whole_from_one, "a whole number, at least 1"),
        "per_device_eval_batch_size": (_whole_from_one, "a whole number, at least 1"),
        "gradient_accumulation_steps": (_whole_from_one, "a whole number, at least 1"),
    }
)
"""Option -> (whether a number is in range, the range in words)."""

UNSET_ALLOWED = (
    "gamma_beta_ratio",
    "router_aux_loss_coef",
    "max_length",
    "max_completion_length",
    "dataset_num_proc",
    "max_micro_batch_tokens",
)

SAMPLING = ("eval_samples", "eval_sample_tokens", "eval_sample_temperature")
"""Options that only say how ``generate_during_eval`` writes."""


def _option(default: Any, text: str, choices: Collection[str] | None = None) -> Any:
    metadata: dict[str, Any] = {"help": text}
    if choices:
        metadata["choices"] = choices  # of a table the table itself, which may grow
    return field(default=default, metadata=metadata)


def _those(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


_Made = TypeVar("_Made")


class _ByEveryName(type):
    """Makes a class of options take those of earlier releases, before its constructor fails.

    Not in the constructor, which ``dataclass`` writes anew for every subclass. Copies, pickles and
    ``dataclasses.fields`` do not come by here; ``dataclasses.replace`` and ``HfArgumentParser`` do.
    """

    def __call__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Make the options, by their names of today."""
        said: tuple[str, ...] = ()
        taken = inspect.signature(cls.__init__).parameters
        known = {name for name, one in taken.items() if one.kind is not one.VAR_KEYWORD}
        if known != set(taken):  # a constructor of somebody's own hands on what it is given
            known |= {option.name for option in fields(cls) if option.init}  # type: ignore[arg-type]
        if not kwargs.keys() <= known:
            kwargs, said = modern(kwargs, known)
        made: _Made = type.__call__(cls, *args, **kwargs)
        say(said)
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, without ``self``, for editors and ``help``."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=[*signature.parameters.values()][1:])


@dataclass
class CPOConfig(TrainingArguments, metaclass=_ByEveryName):
    """Options of a CPO run: TRL's names, Counterpoint's additions, all of TrainingArguments.

    Every field's help states its range and unit; see docs/options.md for the list.

    Raises:
        ConfigError: CP102 for a value outside its choices, CP103 outside its range, CP104 for
            options that contradict each other, CP105 for options that could only mislead.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    # TrainingArguments with other defaults, as in TRL
    learning_rate: float = _option(1e-6, "Initial learning rate of AdamW, > 0.")
    logging_steps: float = _option(
        10, "Optimizer steps between two log lines, or a share of the run if below 1."
    )
    gradient_checkpointing: bool | None = _option(
        True, "Recompute activations in the backward pass: less memory, about a fifth slower."
    )
    bf16: bool | None = _option(
        None,
        "Mixed precision in bfloat16. None: on where an accelerator supports it and fp16 is "
        "off, else off. True on a machine without an accelerator trains on the CPU.",
    )
    logging_nan_inf_filter: bool = _option(
        False, "Refused: it hides non-finite losses; see nonfinite."
    )

    # TRL's
    max_length: int | None = _option(
        1024, "Most tokens of prompt + completion, >= 2; None: 512, as in TRL."
    )
    max_completion_length: int | None = _option(
        None, "Most tokens of a completion, >= 1; None: only max_length limits it."
    )
    beta: float = _option(
        0.1,
        "Scale of the reward, > 0 ("
        + "; ".join(f"{row.method}: {row.beta}" for row in LOSSES.values() if row.beta)
        + ").",
    )
    label_smoothing: float = _option(
        0.0,
        "Probability in [0, 0.5) that a pair's label is flipped; "
        f"{_those(reading('label_smoothing'))} only.",
    )
    loss_type: str = _option(DEFAULT_LOSS, "The preference loss; see docs/objectives.md.", LOSSES)
    disable_dropout: bool = _option(True, "Set every dropout of the model to 0.")
    cpo_alpha: float = _option(
        1.0,
        "Weight of the NLL of the chosen completion, >= 0; "
        f"{_those([name for name in LOSSES if name not in reading('cpo_alpha')])} sets it to 0, as "
        "in TRL.",
    )
    simpo_gamma: float = _option(
        0.5,
        "Margin that chosen must win by, in nats of scaled reward, >= 0; "
        f"{_those(reading('simpo_gamma'))}.",
    )
    alpha: float = _option(
        0.0, "Shape of AlphaPO's reward, (1 - p^-alpha) / alpha; 0: the log-probability itself."
    )
    generate_during_eval: bool = _option(
        False,
        "At each evaluation, and before the first step, let the model write to a few prompts of "
        "each evaluation set: into samples.jsonl, their statistics among the metrics; no tracker "
        "is needed.",
    )
    is_encoder_decoder: bool | None = _option(
        None, "Refused if True: encoder-decoder models are not supported yet."
    )
    model_init_kwargs: dict[str, Any] | str | None = _option(  # noqa: RUF009 - not seen through
        None, "Arguments of AutoModelForCausalLM.from_pretrained when the model is a string."
    )
    trust_remote_code: bool = _option(False, "Run Python code that comes with a model.")
    dataset_num_proc: int | None = _option(None, "Processes for preparing the data set, >= 1.")

    # Counterpoint's
    gamma_beta_ratio: float | None = _option(
        None, "Counterpoint: simpo_gamma given as a multiple of beta, >= 0, as SimPO's paper does."
    )
    nll_reduction: str = _option(
        "token_mean",
        "Counterpoint: the NLL term as mean over the step's chosen tokens (TRL) or as mean over "
        "pairs of sums over tokens (Eq. 5 of the CPO paper).",
        NLL_REDUCTIONS,
    )
    truncation: str = _option(
        "completion_end",
        "Counterpoint: what to cut when a pair is over max_length: the end of the completions "
        "(TRL), the start or the end of the prompt, or the whole row.",
        TRUNCATIONS,
    )
    invalid_rows: str = _option(
        "raise",
        "Counterpoint: what to do with rows that are not preference pairs: stop, or drop them "
        "and write their count and reasons to the run's log.",
        INVALID_ROWS,
    )
    nonfinite: str = _option(
        "raise",
        "Counterpoint: what to do with a step whose loss or gradient is not finite: stop, or "
        "skip the update; it never reaches the weights.",
        NONFINITE,
    )
    allow_pickle: bool = _option(
        False,
        "Counterpoint: read a model's weights from pickles (pytorch_model.bin) where it has no "
        "safetensors. Only tensors are taken from them, but readers of pickles have had holes.",
    )
    layout: str = _option(
        "auto",
        "Counterpoint: run each prompt once for both completions (shared) or once for each "
        "(padded). Both give the same numbers; auto shares on a CPU where the model allows it, "
        "and checks on the run's first pairs.",
        (AUTO, *LAYOUTS),
    )
    max_micro_batch_tokens: int | None = _option(
        None,
        "Counterpoint: most input tokens of a micro-batch, padding included, >= 1; a step's "
        "pairs are cut by it. None: cut by per_device_train_batch_size, or smaller where that is "
        "predicted not to fit (docs/planning.md). Where memory runs out, it is lowered and the "
        "step done again.",
    )
    stochastic_rounding: bool = _option(
        False,
        "Counterpoint: train bfloat16 weights, and round AdamW's updates up or down at random, "
        "so that small ones arrive on average; 12 bytes a weight where float32 takes 16. Needs "
        "the package torchao; see docs/precision.md.",
    )
    eval_samples: int = _option(
        8,
        "Counterpoint: most prompts of each evaluation set that generate_during_eval writes to, "
        ">= 1; the same ones each time.",
    )
    eval_sample_tokens: int = _option(
        128, "Counterpoint: most tokens that generate_during_eval writes to a prompt, >= 1."
    )
    eval_sample_temperature: float = _option(
        0.0,
        "Counterpoint: temperature at which generate_during_eval samples a second text for each "
        "prompt, >= 0, seeded by seed; 0: the greedy one only.",
    )
    resume_anyway: bool = _option(
        False,
        "Counterpoint: go on from a checkpoint though data, objective, model, steps or optimizer "
        "differ from its own; they are named either way. See docs/reliability.md.",
    )
    router_aux_loss_coef: float | None = _option(
        None,
        "Counterpoint: weight of a mixture-of-experts model's load-balancing loss, >= 0; None: "
        "what the model's config says; 0: off.",
    )
    constraints: list[dict[str, Any] | Constraint] | str | None = _option(  # noqa: RUF009 - not seen through
        None,
        "Counterpoint: what must hold while the loss is minimised (docs/constrained.md): a list of "
        "mappings such as {kind: bc, slack: 0.05}, or of counterpoint.Constraint. With bc among "
        "them, cpo_alpha is where its multiplier starts, and no longer a fixed weight.",
    )
    constraint_calibration: int = _option(
        256,
        "Counterpoint: most training pairs, spread evenly, on which the initial policy is measured "
        "for bounds that are relative to it, >= 1.",
    )
    constraint_normalization: bool = _option(
        False,
        "Counterpoint: divide the loss by 1 + the sum of the multipliers, so that steps do not "
        "grow with them.",
    )
    monitor_steps: int = _option(
        50,
        "Counterpoint: optimizer steps between two looks at how far the weights have moved, >= 0; "
        "closer together at first; 0: none. See docs/monitor.md.",
    )
    on_alarm: str = _option(
        "warn",
        "Counterpoint: what an alarm does (docs/alarms.md): it is said and written to the run's "
        "alarms.jsonl, or it also ends the run after the step, with a checkpoint and error CP402.",
        ON_ALARM,
    )

    def __post_init__(self) -> None:
        """Resolve what depends on other options or the machine, refuse what cannot be meant."""
        self._changed = tuple(
            name for name, value in _defaults(self) if getattr(self, name) != value
        )
        if isinstance(self.constraints, str):
            self.constraints = _parse("constraints", self.constraints, list)
        self._constrained_by = tuple(read_constraints(self.constraints))
        self._check_choices()
        self._check_ranges()
        self._check_refused()
        if not LOSSES[self.loss_type].reads("cpo_alpha"):
            self.cpo_alpha = 0.0
        self._check_contradictions()
        if self.report_to is None:
            self.report_to: str | list[str] = "none"
        self._resolve_precision()
        self._resolve_checkpointing()
        if isinstance(self.model_init_kwargs, str):
            self.model_init_kwargs = _parse("model_init_kwargs", self.model_init_kwargs, dict)
        self._resolve_direction()
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values, without secrets: run log and trackers get these."""
        mask = Mask()
        plain = super().to_dict()
        if self._constrained_by:
            plain["constraints"] = [one.as_dict() for one in self._constrained_by]
        return {name: mask.of(value) for name, value in plain.items()}

    @property
    def changed(self) -> tuple[str, ...]:
        """Options that were made with another value than their defaults."""
        return self._changed

    @property
    def constrained_by(self) -> tuple[Constraint, ...]:
        """The constraints of the run, read and checked."""
        return self._constrained_by

    @property
    def nll_weight(self) -> float:
        """The fixed weight of the NLL term; 0 where a constraint on it has a multiplier instead."""
        bounded = any(one.row.nll_weight for one in self._constrained_by)
        return 0.0 if bounded else self.cpo_alpha

    @property
    def gamma(self) -> float:
        """The margin of the loss in nats of scaled reward; 0 for losses without one."""
        if not LOSSES[self.loss_type].reads("simpo_gamma"):
            return 0.0
        if self.gamma_beta_ratio is not None:
            return self.gamma_beta_ratio * self.beta
        return self.simpo_gamma

    def _check_choices(self) -> None:
        choices = {
            "loss_type": tuple(LOSSES),
            "nll_reduction": NLL_REDUCTIONS,
            "truncation": TRUNCATIONS,
            "invalid_rows": INVALID_ROWS,
            "nonfinite": NONFINITE,
            "on_alarm": ON_ALARM,
            "layout": (AUTO, *LAYOUTS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    "CP102",
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.",
                )

    def _check_ranges(self) -> None:
        for name, (holds, expected) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in UNSET_ALLOWED:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and holds(value)):
                raise ConfigError("CP103", f"{name}={value!r} should be {expected}.")

    def _check_refused(self) -> None:
        for name, (passing, reason) in REFUSED.items():
            value = getattr(self, name, passing)  # releases of transformers differ in options
            if is_refused(name, value):
                raise ConfigError("CP105", f"{name}={value!r} is refused: {reason}.")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ConfigError(
                "CP105",
                f"train_sampling_strategy={self.train_sampling_strategy!r} is refused: choosing "
                "pairs by length would change what a step is made of; use 'random' or "
                "'sequential'.",
            )

    def _check_loss(self) -> None:
        """What the loss does not read, by its row of the table."""
        row, of = LOSSES[self.loss_type], f"loss_type={self.loss_type!r}"
        if self.gamma_beta_ratio is not None and not row.reads("gamma_beta_ratio"):
            raise ConfigError(
                "CP104",
                f"gamma_beta_ratio={self.gamma_beta_ratio} has no meaning with {of}; only "
                f"{_those(reading('gamma_beta_ratio'))} have a margin times beta.",
            )
        if self.gamma_beta_ratio is not None and self.simpo_gamma not in (
            0.5,
            self.gamma_beta_ratio * self.beta,
        ):
            raise ConfigError(
                "CP104",
                f"gamma_beta_ratio={self.gamma_beta_ratio} with beta={self.beta} asks for a "
                f"margin of {self.gamma_beta_ratio * self.beta:g}, simpo_gamma for "
                f"{self.simpo_gamma:g}; give one of them.",
            )
        if self.simpo_gamma != 0.5 and not row.reads("simpo_gamma"):
            raise ConfigError(
                "CP104",
                f"simpo_gamma={self.simpo_gamma} would do nothing with {of}; only "
                f"{', '.join(reading('simpo_gamma'))} have a margin.",
            )
        if self.label_smoothing and not row.reads("label_smoothing"):
            raise ConfigError(
                "CP104",
                f"label_smoothing={self.label_smoothing} would do nothing with {of}; only "
                f"{', '.join(reading('label_smoothing'))} use it.",
            )
        if self.alpha and not row.reads("alpha"):
            raise ConfigError(
                "CP104",
                f"alpha={self.alpha} reshapes the log-probability reward, which {of} does not "
                "have.",
            )

    def _check_contradictions(self) -> None:
        self._check_loss()
        if self.stochastic_rounding and self.fp16:
            raise ConfigError(
                "CP104", "stochastic_rounding is for bfloat16 weights; fp16=True contradicts it."
            )
        if self.stochastic_rounding and self.optim not in ADAMW:
            raise ConfigError(
                "CP104",
                f"stochastic_rounding brings its own AdamW, so that optim={self.optim!r} would "
                "not be used; leave one of them out.",
            )
        if self.stochastic_rounding and self.optim_args:
            raise ConfigError(
                "CP104",
                f"stochastic_rounding brings its own AdamW, so that optim_args={self.optim_args!r} "
                "would not be used; leave one of them out.",
            )
        self._check_samples()
        self._check_constraints()
        longest = 512 if self.max_length is None else self.max_length
        if self.max_completion_length is not None and self.max_completion_length >= longest:
            raise ConfigError(
                "CP104",
                f"max_completion_length={self.max_completion_length} leaves no room for a prompt "
                f"within max_length={longest}.",
            )

    def _check_samples(self) -> None:
        if self.generate_during_eval:
            return
        for name in SAMPLING:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ConfigError(
                    "CP104",
                    f"{name}={getattr(self, name)} would do nothing without "
                    "generate_during_eval=True; add that, or leave it out.",
                )

    def _check_constraints(self) -> None:
        for name in ("constraint_calibration", "constraint_normalization"):
            default = self.__dataclass_fields__[name].default
            if not self.constrained_by and getattr(self, name) != default:
                raise ConfigError(
                    "CP104",
                    f"{name}={getattr(self, name)} would do nothing without constraints; add some, "
                    "or leave it out.",
                )

        bounded = [one for one in self.constrained_by if one.row.of_texts]
        for one in bounded:
            if not self.generate_during_eval or self.eval_strategy == "no":
                raise ConfigError(
                    "CP104",
                    f"constraint {one.name} is measured on what the model writes at evaluations; "
                    "set generate_during_eval=True and an eval_strategy.",
                )
            if one.bound is not None and not 0 < one.bound < self.eval_sample_tokens:
                raise ConfigError(
                    "CP104",
                    f"constraint {one.name}: bound={one.bound} should be above 0 and below "
                    f"eval_sample_tokens={self.eval_sample_tokens}, at which texts are cut.",
                )

    def _resolve_precision(self) -> None:
        gpu = is_torch_bf16_gpu_available()
        if self.bf16 is None:
            self.bf16 = gpu and not self.fp16 and not self.use_cpu
        # without being told, accelerate takes each process on CPUs for a run of its own
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (self.bf16 or several) and not gpu and not _has_accelerator():
            self.use_cpu: bool = True

    def _resolve_direction(self) -> None:
        # transformers takes more for better of whatever does not end with "loss"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better: bool | None = more_is_better(self.metric_for_best_model)

    def _resolve_checkpointing(self) -> None:
        # newer releases of transformers renamed the option, and warn of TRL's name for it
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if hasattr(self, new) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))


def _defaults(config: CPOConfig) -> Iterator[tuple[str, Any]]:
    """Every option with the value that it has when nobody gives one."""
    for option in fields(config):
        if option.init:
            made = option.default_factory
            yield option.name, option.default if made is MISSING else made()


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _parse(name: str, text: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, kind):
        raise ConfigError(
            "CP103", f"{name}={text!r} should be a JSON {'object' if kind is dict else 'list'}."
        )
    return value
