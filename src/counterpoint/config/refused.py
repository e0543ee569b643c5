"""Options that could only mislead here: what passes, and why anything else is refused.

Not here: options that contradict each other (``checks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig

from counterpoint.engine import DEEPSPEED

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
        "deepspeed": (None, DEEPSPEED),
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
        "ignore_data_skip": (
            False,
            "a run resumes after the pairs that it has trained on, and finding its place reads "
            "none of them",
        ),
        "include_for_metrics": ([], "there are no inputs or losses to pass to compute_metrics"),
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
            "a resumed run gives callbacks their states back, always",
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


def is_refused(name: str, value: Any) -> bool:
    """Whether an option of ``REFUSED`` is refused with a value.

    Args:
        name: one of ``REFUSED``.
        value: as given, or as transformers has resolved it.
    """
    passing = REFUSED[name][0]
    if name == "accelerator_config":
        value = _other_than(AcceleratorConfig().to_dict(), value)
    off = value is None or value is False or value in ([], {}, "")
    return bool(value != passing and (passing or not off))


def _other_than(defaults: Mapping[str, Any], value: Any) -> Any:
    """What a nested option says beyond its defaults; a file's name as it is."""
    given = value.to_dict() if isinstance(value, AcceleratorConfig) else value
    if not isinstance(given, Mapping):
        return given
    return {key: part for key, part in given.items() if part != defaults.get(key)}
