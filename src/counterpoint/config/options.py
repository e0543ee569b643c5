"""CPOConfig: every option, one line of help with range and unit, contradictions refused here.

Names and defaults are those of TRL 1.16's ``CPOConfig`` on top of
``transformers.TrainingArguments``, so that a script changes its import and nothing else. What
Counterpoint adds is marked "Counterpoint:" in its help; docs/options.md is generated from this
file.

Not here: which values are refused (``checks``, ``refused``), and reading YAML or flags
(``counterpoint.options``).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from counterpoint import ranks
from counterpoint.config.checks import (
    NLL_REDUCTIONS,
    NONFINITE,
    ON_ALARM,
    TRUNCATIONS,
    check_choices,
    check_contradictions,
    check_ranges,
    check_refused,
    check_sharding,
    parsed,
    those,
)
from counterpoint.config.host_offload import settle_offload
from counterpoint.config.names import ByEveryName
from counterpoint.config.pair_options import PairOptions
from counterpoint.config.run_control import RunControl
from counterpoint.config.step_size import pairs_on, settle_accumulation
from counterpoint.constraints import Constraint, read_constraints
from counterpoint.forward import encoded as _encoded  # noqa: F401 - two layouts are its own
from counterpoint.forward.layouts import AUTO, LAYOUTS, REFERENCE
from counterpoint.masking import Mask
from counterpoint.metric_names import more_is_better
from counterpoint.objectives import DEFAULT_LOSS, INITIAL, LOSSES, reading
from counterpoint.picture import MOST_PIXELS
from counterpoint.preference_row import ASSISTANT_TURNS, INVALID_ROWS, TRAIN_TURNS


def _option(default: Any, text: str, choices: Collection[str] | None = None) -> Any:
    metadata: dict[str, Any] = {"help": text}
    if choices:
        metadata["choices"] = choices  # of a table the table itself, which may grow
    return field(default=default, metadata=metadata)


@dataclass
class CPOConfig(PairOptions, RunControl, TrainingArguments, metaclass=ByEveryName):
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
        1024,
        "Most tokens of prompt + completion, >= 2; None: 512, as in TRL. Of an encoder-decoder: of "
        "the source.",
    )
    max_completion_length: int | None = _option(
        None,
        "Most tokens of a completion, >= 1; None: only max_length limits it. Below max_length, but "
        "with is_encoder_decoder.",
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
        f"{those(reading('label_smoothing'))} only.",
    )
    loss_type: str = _option(DEFAULT_LOSS, "The preference loss; see docs/objectives.md.", LOSSES)
    disable_dropout: bool = _option(True, "Set every dropout of the model to 0.")
    cpo_alpha: float = _option(
        1.0,
        "Weight of the NLL of the chosen completion, >= 0; not read by "
        f"{those([name for name in LOSSES if name not in reading('cpo_alpha')])}.",
    )
    simpo_gamma: float = _option(
        0.5,
        "Margin that chosen must win by, in nats of scaled reward, >= 0; "
        f"{those(reading('simpo_gamma'))}.",
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
        None,
        "Whether the model has an encoder; None: as its configuration says. Needed only for a "
        "max_completion_length of max_length or more, and for rows without a source of which both "
        "completions begin with it, as TRL reads them.",
    )
    model_init_kwargs: dict[str, Any] | str | None = _option(  # noqa: RUF009 - not seen through
        None, "Arguments of the model's from_pretrained when the model is a string."
    )
    trust_remote_code: bool = _option(False, "Run Python code that comes with a model.")
    dataset_num_proc: int | None = _option(None, "Processes for preparing the data set, >= 1.")

    # Counterpoint's
    reference: str = _option(
        INITIAL,
        f"Counterpoint: what {those(reading('reference'))} compare each pair with: initial, the "
        "model as the run begins, or another's id (id@revision) or folder. See docs/references.md.",
    )
    rpo_alpha: float | None = _option(
        None, f"Counterpoint: weight of the NLL beside {those(reading('rpo_alpha'))}, >= 0; RPO."
    )
    dpop_lambda: float = _option(
        50.0,
        "Counterpoint: weight of what chosen has lost to the reference, >= 0; "
        f"{those(reading('dpop_lambda'))} only.",
    )
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
    train_turns: str = _option(
        ASSISTANT_TURNS,
        "Counterpoint: which turns of a completion of several carry loss: the assistant's, its "
        "last one, or all of them, tool results and user turns too. See docs/data.md.",
        TRAIN_TURNS,
    )
    invalid_rows: str = _option(
        "raise",
        "Counterpoint: what to do with rows that are not preference pairs: stop, or drop them "
        "and write their count and reasons to the run's log.",
        INVALID_ROWS,
    )
    source_lang: str | None = _option(
        None,
        "Counterpoint: code of the prompts' language, for encoder-decoders of many languages; a "
        "row's own column source_lang counts first. None: the tokenizer's. See "
        "docs/translation.md.",
    )
    target_lang: str | None = _option(
        None, "Counterpoint: the same of the completions' language; the rows' column target_lang."
    )
    image_folder: str | None = _option(
        None,
        "Counterpoint: the folder in which pictures that rows name by a path are looked up, and "
        "out of which no path may lead. None: the folder of the data set.",
    )
    allow_remote_images: bool = _option(
        False,
        "Counterpoint: fetch pictures that rows name by an address of http or https, each once; "
        "never from the machine's own network. See docs/data.md.",
    )
    max_image_pixels: int = _option(
        MOST_PIXELS,
        "Counterpoint: most pixels of a picture, 1 to 134,217,728; a larger one makes its row "
        "unusable, and is found out from its header.",
    )
    picture_cache_gb: float = _option(
        0.0,
        "Counterpoint: memory of the host, in GB a process, in which features of pictures are kept "
        "where the vision tower and its projector are frozen, so that each picture is looked at "
        "once; the oldest are thrown away. 0: none. See docs/vision.md.",
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
        "(padded); of an encoder-decoder its sources (encoder-once, encoder-twice); pixels for "
        "every row (pictures-twice). All give the same numbers; auto shares where the model allows "
        "it, proves it on the first pairs, and on an accelerator times both.",
        ChainMap(LAYOUTS, {AUTO: REFERENCE}),  # a view, whose first name is the last map's
    )
    max_micro_batch_tokens: int | None = _option(
        None,
        "Counterpoint: most input tokens of a micro-batch, padding included, >= 1; a step's "
        "pairs are cut by it. None: cut by per_device_train_batch_size, or smaller where that is "
        "predicted not to fit (docs/planning.md). Where memory runs out, it is lowered and the "
        "step done again.",
    )
    fsdp_replicas: int | None = _option(
        None,
        "Counterpoint: copies of a model that fsdp shards (HSDP), >= 1; each copy is spread over "
        "ranks / fsdp_replicas. None: one copy over all ranks. See docs/scaling.md.",
    )
    pairs_per_step: int | None = _option(
        None,
        "Counterpoint: pairs of an optimizer step over all ranks, >= 1; "
        "gradient_accumulation_steps follows. None: per_device_train_batch_size x "
        "gradient_accumulation_steps x ranks. A run keeps it when it resumes on other ranks.",
    )
    checkpointing_share: float = _option(
        1.0,
        "Counterpoint: share of the layers that gradient_checkpointing lets compute their "
        "activations again, in (0, 1], evenly over the depth; less of it is faster and holds more.",
    )
    activation_offload: bool = _option(
        False,
        "Counterpoint: what the forward keeps for the backward waits in the host's memory; the "
        "same numbers, paid with two copies. Nothing on a CPU. See docs/planning.md.",
    )
    optimizer_offload: bool = _option(
        False,
        "Counterpoint: with fsdp, a rank's part of weights, gradients and moments waits in the "
        "host's memory, where the update is made (FSDP2's CPUOffloadPolicy). The same numbers on a "
        "CPU, to rounding elsewhere. See docs/planning.md.",
    )
    stream_shards: int = _option(
        1,
        "Counterpoint: lanes into which the shards of a streamed train_dataset are divided; pairs "
        "come from them in turn. Ranks whose number divides it read a share of the shards each "
        "(docs/data.md). 1: every rank reads the whole stream.",
    )
    stochastic_rounding: bool = _option(
        False,
        "Counterpoint: train bfloat16 weights, and round AdamW's updates up or down at random, "
        "so that small ones arrive on average; 12 bytes a weight where float32 takes 16. Needs "
        "the package torchao; see docs/precision.md.",
    )
    load_in_4bit: bool = _option(
        False,
        "Counterpoint: load a model by its name with linear layers in 4 bits (nf4), to train a "
        "LoRA adapter on (QLoRA). Needs the package bitsandbytes; see docs/quantized.md.",
    )
    load_in_8bit: bool = _option(
        False,
        "Counterpoint: the same in 8 bits (int8), nearer to the model's own numbers in twice the "
        "memory.",
    )
    eval_samples: int = _option(
        8,
        "Counterpoint: most prompts of each evaluation set that generate_during_eval writes to, "
        ">= 1; the same ones each time.",
    )
    eval_sample_tokens: int = _option(
        128, "Counterpoint: most tokens that generate_during_eval writes to a prompt, >= 1."
    )
    generation_num_beams: int = _option(
        1,
        "Counterpoint: beams with which generate_during_eval writes, >= 1, by the name that "
        "Seq2SeqTrainingArguments gives it; 1: greedily.",
    )
    eval_sample_temperature: float = _option(
        0.0,
        "Counterpoint: temperature at which generate_during_eval samples a second text for each "
        "prompt, >= 0, seeded by seed; 0: the first one only.",
    )
    resume_anyway: bool = _option(
        False,
        "Counterpoint: resume from a checkpoint though data, objective, model, steps or optimizer "
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
            self.constraints = parsed("constraints", self.constraints, list)
        self._constrained_by = tuple(read_constraints(self.constraints))
        self.reference = INITIAL if self.reference is None else str(self.reference)
        check_choices(self)
        check_ranges(self)
        check_refused(self)
        check_sharding(self)
        if str(self.fsdp) == "2":  # the version, which is the only one
            self.fsdp: Any = True
        if not LOSSES[self.loss_type].reads("cpo_alpha"):
            self.cpo_alpha = self.rpo_alpha or 0.0
        check_contradictions(self)
        if self.report_to is None:
            self.report_to: str | list[str] = "none"
        self._resolve_precision()
        self._resolve_checkpointing()
        if isinstance(self.model_init_kwargs, str):
            self.model_init_kwargs = parsed("model_init_kwargs", self.model_init_kwargs, dict)
        self._resolve_direction()
        super().__post_init__()
        settle_offload(self)
        settle_accumulation(self)

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
    def step_pairs(self) -> int:
        """Pairs of a step, over all ranks."""
        return pairs_on(self, self.world_size)

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

    def _resolve_precision(self) -> None:
        gpu = is_torch_bf16_gpu_available()
        if self.bf16 is None:
            self.bf16 = gpu and not self.fp16 and not self.use_cpu
        # without being told, accelerate takes each process on CPUs for a run of its own
        several = ranks.launched() > 1
        if (self.bf16 or several) and not gpu and not _has_accelerator():
            self.use_cpu: bool = True

    def _resolve_direction(self) -> None:
        # transformers takes more for better of whatever does not end with "loss"
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            self.metric_for_best_model: str | None = "loss"  # as with load_best_model_at_end
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
