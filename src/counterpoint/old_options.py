"""Names that users of TRL and of older transformers bring with them, and what becomes of each.

``TAKEN``: an option that TRL or transformers once had and whose meaning is clear here. It is taken
under its new name, with one warning (CW127), by ``CPOConfig`` as by the command. ``OLD_NAMES``:
everything else that is known, with what replaces it; giving it is an error (CP101).

Only names that are no option here: where a release of transformers still has a name of this list,
the option is its own.

Not here: options of today that are refused (``config.REFUSED``).
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.objectives import ALPHAPO, DEFAULT_LOSS, DPO

OLD = "CW127"
"""The code of the warning."""

_TRUNCATION = "max_length limits prompt + completion and truncation says what to cut"
_QUANTISED = (
    "load_in_4bit is nf4 with double quantization, and computes in the precision of the run; leave "
    "it out"
)

OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        # TRL's CPOConfig in earlier releases, where what they meant cannot be said here
        "truncation_mode": f"{_TRUNCATION}: keep_end is truncation: prompt_start",
        "pad_token": "padding never reaches the loss; leave it out",
        "gamma": "write simpo_gamma",
        "gamma_ratio": "write gamma_beta_ratio",
        "alpha_po": f"write alpha with loss_type: {ALPHAPO.name}",
        "loss": "write loss_type",
        "ref_model": f"write reference, with loss_type: {DPO.name}",
        "reference_free": f"write loss_type: {DEFAULT_LOSS}, which compares with no reference",
        "precompute_ref_log_probs": "a reference is always asked before the first step; leave it "
        "out",
        "sync_ref_model": "a reference stays what it was; leave it out",
        # TRL's ModelConfig and ScriptArguments, and the scripts of others
        "config": "give the file without a flag: counterpoint train FILE",
        "model_name_or_path": "write model",
        "model_name": "write model",
        "model_path": "write model",
        "base_model": "write model",
        "model_revision": "write revision",
        "torch_dtype": "write dtype",
        "tokenizer_name": "write tokenizer",
        "tokenizer_name_or_path": "write tokenizer",
        "processing_class": "write tokenizer",
        "chat_template_path": "write chat_template",
        "dataset_name": "write dataset",
        "dataset_path": "write dataset",
        "train_dataset": "write dataset",
        "train_file": "write dataset",
        "dataset_train_split": "write dataset_split",
        "dataset_test_split": "write eval_dataset_split",
        "dataset_streaming": "write streaming",
        "validation_file": "write eval_dataset",
        "test_dataset": "write eval_dataset",
        "use_peft": "give lora_r (16 is usual); an adapter is trained when it is given",
        "peft_config": "give lora_r and its relatives",
        "adapter": "give lora_r and its relatives",
        "lora_target": "write lora_target_modules",
        "lora_rank": "write lora_r",
        "lora_task_type": "it follows from the model; leave it out",
        "bnb_4bit_quant_type": _QUANTISED,
        "use_bnb_nested_quant": _QUANTISED,
        "bnb_4bit_use_double_quant": _QUANTISED,
        "bnb_4bit_compute_dtype": _QUANTISED,
        "bnb_4bit_quant_storage": _QUANTISED,
        # shorter names, and those of other tools
        "train_batch_size": "write per_device_train_batch_size",
        "batch_size": "write per_device_train_batch_size",
        "micro_batch_size": "write per_device_train_batch_size",
        "eval_batch_size": "write per_device_eval_batch_size",
        "gradient_accumulation": "write gradient_accumulation_steps",
        "lr": "write learning_rate",
        "lr_scheduler": "write lr_scheduler_type",
        "epochs": "write num_train_epochs",
        "num_epochs": "write num_train_epochs",
        "optimizer": "write optim",
        "sequence_len": "write max_length",
        "cutoff_len": "write max_length",
        "max_seq_length": "write max_length",
        "max_grad_value": "write max_grad_norm",
        # scripts that train translators
        "max_source_length": "write max_length; of an encoder-decoder it limits sources",
        "src_lang": "write source_lang",
        "tgt_lang": "write target_lang",
        "predict_with_generate": "write generate_during_eval",
        "generation_max_length": "write eval_sample_tokens",
        "val_max_target_length": "max_completion_length limits completions wherever they are read",
        "forced_bos_token": "write target_lang; what the decoder begins with follows from it",
        "source_prefix": "put it into the sources, as counterpoint pairs --prompt_template does",
        "num_beams": "write generation_num_beams",
        "ignore_pad_token_for_loss": "padding never reaches the loss; leave it out",
        "pad_to_max_length": "rows are never longer than they must be; leave it out",
        "overwrite": "write overwrite_output_dir",
    }
)

IN_PYTHON: Mapping[str, str] = MappingProxyType(
    {
        "model": "pass it to CPOTrainer(model=...)",
        "revision": "write model_init_kwargs={'revision': ...}, or load the model yourself",
        "dtype": "write model_init_kwargs={'dtype': ...}, or load the model yourself",
        "attn_implementation": "write model_init_kwargs={'attn_implementation': ...}, or load the "
        "model yourself",
        "from_scratch": "make the model of its configuration and pass it to CPOTrainer(model=...)",
        "tokenizer": "pass it to CPOTrainer(processing_class=...)",
        "resize_vocab": "call model.resize_token_embeddings(len(tokenizer)), and name the new "
        "tokens in LoraConfig(trainable_token_indices=...)",
        "chat_template": "set tokenizer.chat_template and pass CPOTrainer(processing_class=...)",
        "dataset": "pass the rows to CPOTrainer(train_dataset=...)",
        "eval_dataset": "pass the rows to CPOTrainer(eval_dataset=...)",
        "dataset_split": "pass the rows to CPOTrainer(train_dataset=...)",
        "datasets": "pass CPOTrainer(train_dataset=open_sets(...)), of counterpoint.data.mixture",
        "max_rows": "pass CPOTrainer(train_dataset=rows.select(range(...)))",
        "eval_share": "divide the rows with hold_out of counterpoint.data.held_out",
        "eval_dataset_split": "pass the rows to CPOTrainer(eval_dataset=...)",
        "overwrite_output_dir": "trainer.train begins anew unless it is told to resume",
        "streaming": "pass an IterableDataset to CPOTrainer(train_dataset=...)",
        "peft_config": "pass it to CPOTrainer(peft_config=...)",
        "adapter": "pass CPOTrainer(peft_config=LoraConfig(...))",
        "use_peft": "pass CPOTrainer(peft_config=LoraConfig(...))",
        "lora_r": "pass CPOTrainer(peft_config=LoraConfig(r=...))",
        "lora_alpha": "pass CPOTrainer(peft_config=LoraConfig(lora_alpha=...))",
        "lora_dropout": "pass CPOTrainer(peft_config=LoraConfig(lora_dropout=...))",
        "lora_target_modules": "pass CPOTrainer(peft_config=LoraConfig(target_modules=...))",
        "lora_target_parameters": "pass CPOTrainer(peft_config=LoraConfig(target_parameters=...))",
        "lora_modules_to_save": "pass CPOTrainer(peft_config=LoraConfig(modules_to_save=...))",
        "use_rslora": "pass CPOTrainer(peft_config=LoraConfig(use_rslora=True))",
        "use_dora": "pass CPOTrainer(peft_config=LoraConfig(use_dora=True))",
        "create_new_adapter": "merge the old one first: model.merge_and_unload()",
        "resume": "pass it to trainer.train(resume_from_checkpoint=...)",
        "doctor": "call counterpoint.examine(...)",
        "compute_metrics": "pass it to CPOTrainer(compute_metrics=...)",
        "callbacks": "pass them to CPOTrainer(callbacks=...)",
        "data_collator": "a batch's layout is Counterpoint's own; leave it out",
        "config": "it is no option of a script; leave it out",
    }
)
"""What the command takes as an option, and a script gives elsewhere."""

_RENAMED = re.compile(r"write (\w+)(;.*)?")


@dataclass(frozen=True, slots=True)
class Taken:
    """What becomes of an option of an earlier release.

    Args:
        to: the option that it is today; "" where nothing has to be set.
        why: where it went, for the warning.
        hint: type of its value; None: that of ``to``.
        passing: values that mean nothing or what is done anyway; any other is refused. None: every
            value passes.
        value: from its value to that of ``to``.
        wanted: what a value should be that ``value`` refuses by a ValueError.
    """

    to: str
    why: str
    hint: Any = None
    passing: tuple[Any, ...] | None = None
    value: Callable[[Any], Any] = lambda value: value
    wanted: str = ""


def _share(value: Any) -> Any:
    """``warmup_ratio`` as ``warmup_steps``, of which only a number below 1 is a share."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError
    return value


def _gone(why: str, hint: Any = bool, passing: tuple[Any, ...] | None = (False, None)) -> Taken:
    return Taken("", why, hint, passing)


_SINCE_5 = "it is gone since transformers 5"
_NEVER_READ = "no trainer ever read it"
_NO_PADDING = "padding never reaches the loss, so that it has no effect"
_BY_LENGTH = "choosing pairs by length would change what a step is made of"

TAKEN: Mapping[str, Taken] = MappingProxyType(
    {
        # transformers
        "evaluation_strategy": Taken("eval_strategy", "its name since transformers 4.41"),
        "warmup_ratio": Taken(
            "warmup_steps",
            "below 1 it is a share of the run",
            hint=float | None,
            value=_share,
            wanted="a share of the run, at least 0 and below 1",
        ),
        "no_cuda": Taken("use_cpu", "its name since transformers 4.34"),
        "per_gpu_train_batch_size": Taken("per_device_train_batch_size", "its name today"),
        "per_gpu_eval_batch_size": Taken("per_device_eval_batch_size", "its name today"),
        "push_to_hub_token": Taken("hub_token", "its name today"),
        "push_to_hub_model_id": Taken("hub_model_id", "its name today"),
        "adafactor": Taken(
            "optim",
            "optim names the optimizer",
            hint=bool,
            value=lambda on: "adafactor" if on else None,
        ),
        "torchdynamo": Taken("torch_compile_backend", "its name today"),
        "logging_dir": Taken(
            "",
            "the environment variable TENSORBOARD_LOGGING_DIR says it since transformers 5",
            hint=str | None,
        ),
        "save_safetensors": _gone("weights are always saved as safetensors", passing=(True, None)),
        "group_by_length": _gone(_BY_LENGTH),
        "use_mps_device": _gone("an accelerator is found by itself", passing=None),
        "fp16_opt_level": _gone("apex is gone from transformers", str, ("O1", None)),
        "half_precision_backend": _gone(
            "apex is gone from transformers", str, ("auto", "cuda_amp", "cpu_amp", None)
        ),
        "fp16_backend": _gone(
            "apex is gone from transformers", str, ("auto", "cuda_amp", "cpu_amp", None)
        ),
        "jit_mode_eval": _gone(_SINCE_5),
        "use_ipex": _gone(_SINCE_5),
        "include_tokens_per_second": _gone(
            "tokens_per_second is always logged", passing=(True, False, None)
        ),
        "include_inputs_for_metrics": _gone(
            "there are no inputs to pass to compute_metrics, which gets each pair's rewards"
        ),
        "tpu_metrics_debug": _gone("TPUs are not supported"),
        "tpu_num_cores": _gone("TPUs are not supported", int, (None,)),
        "past_index": _gone("no preference model carries a past", int, (-1, None)),
        "ray_scope": _gone("it said how Ray picks a trial's best", str, ("last", None)),
        "mp_parameters": _gone("SageMaker's model parallelism is gone", str, ("", None)),
        "fsdp_min_num_params": _gone("it belonged to version 1 of FSDP", int, (0, None)),
        "fsdp_transformer_layer_cls_to_wrap": _gone(
            "write fsdp_config: {transformer_layer_cls_to_wrap: ...}", str, (None, "")
        ),
        "sharded_ddp": _gone("it is gone since transformers 4.34", str, ("", False, None)),
        "xpu_backend": _gone("write ddp_backend", str, (None,)),
        "dispatch_batches": _gone(
            "each rank reads for itself here; stream_shards lets it read a share of a stream",
            bool | None,
        ),
        "split_batches": _gone(
            "pairs are dealt to ranks here, so that a step is the same set", bool | None
        ),
        "use_legacy_prediction_loop": _gone(_SINCE_5),
        "overwrite_output_dir": _gone(
            f"{_NEVER_READ}: trainer.train begins anew unless it is told to resume", passing=None
        ),
        "push_to_hub_organization": _gone("hub_model_id holds it", str, (None,)),
        "hub_private": _gone("write hub_private_repo", bool | None),
        "evaluate_during_training": _gone("write eval_strategy"),
        # TRL's CPOConfig
        "max_prompt_length": _gone(
            f"{_TRUNCATION} (prompt_start or prompt_end cut the prompt)",
            int | None,
            (None,),
        ),
        "max_target_length": Taken("max_completion_length", "its name since TRL 0.9"),
        "label_pad_token_id": _gone("nothing is padded with labels", int | None, None),
        "padding_value": _gone(_NO_PADDING, int | None, None),
        "padding_free": _gone("layout and padding never change a result", passing=None),
        "use_logits_to_keep": _gone("logits are made for completions only", passing=None),
        "base_model_attribute_name": _gone("the head is found by itself", str, ("model", None)),
    }
)
"""Option of an earlier release -> what becomes of it."""


def renamed(name: str) -> str | None:
    """The option that an old name is another word for; None where it is not just that."""
    if name in TAKEN:
        one = TAKEN[name]
        return one.to if one.to and name not in ("adafactor",) else None
    found = _RENAMED.fullmatch(OLD_NAMES.get(name, ""))
    return found[1] if found else None


def old_meaning(name: str) -> str | None:
    """What is to be known of an old name; None for a name that is not known."""
    return TAKEN[name].why if name in TAKEN else OLD_NAMES.get(name)


def why_no_option(name: str, known: Collection[str], *, script: bool = False) -> str:
    """What to say of a name that is no option: what replaces it, or what is nearest.

    Args:
        name: as it was given.
        known: the names of all options.
        script: it was given in Python, where some are given elsewhere.

    Returns:
        The end of a sentence that begins "NAME is no option", from its colon or semicolon on.
    """
    if script:
        elsewhere = IN_PYTHON.get(name) or IN_PYTHON.get(renamed(name) or "")
        if elsewhere:
            return f": {elsewhere}."
    if name in OLD_NAMES:
        return f": {OLD_NAMES[name]}."
    near = nearest(name, known)
    if near:
        return f"; did you mean {near}?"
    return f"; {'docs/options.md' if script else 'counterpoint train --help'} lists them."


def nearest(name: str, known: Collection[str]) -> str | None:
    """The option whose name is most like ``name``; None where nothing is."""
    found = difflib.get_close_matches(name, [*known], n=1, cutoff=0.6)
    return found[0] if found else None


def modern(
    given: Mapping[str, Any],
    known: Collection[str],
    *,
    where: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options by their names of today.

    Args:
        given: options by name, some of them perhaps of an earlier release.
        known: the names of all options.
        where: how each was given in a file or on a command line; None: in Python.

    Returns:
        The options, and a sentence for each that was taken by another name or left out.

    Raises:
        ConfigError: CP101 for names that are no option, and values that no option has any more;
            CP103 for a value that cannot be said by the new name; CP104 for an option that is
            given by both names with different values.
    """
    found = {name: value for name, value in given.items() if name in known}
    unknown = [name for name in given if name not in known and name not in TAKEN]
    if unknown:
        raise ConfigError(
            "CP101",
            " ".join(
                f"{name} is no option{why_no_option(name, known, script=where is None)}"
                for name in unknown
            ),
        )
    said = []
    for name, value in given.items():
        if name not in known:
            said.append(_take(name, value, found, (where or {}).get(name, name)))
    return found, tuple(said)


def _take(name: str, value: Any, found: dict[str, Any], where: str) -> str:
    """Put an old option among the others; a sentence about it."""
    one = TAKEN[name]
    if one.passing is not None and value not in one.passing:
        raise ConfigError("CP101", f"{where}={value!r} is no option: {one.why}.")
    if not one.to:
        if name == "logging_dir" and value is not None:
            os.environ["TENSORBOARD_LOGGING_DIR"] = str(value)
            return f"{name} is taken as TENSORBOARD_LOGGING_DIR={str(value)!r}: {one.why}."
        return f"{name} is left out: {one.why}."
    try:
        new = one.value(value)
    except ValueError:
        raise ConfigError("CP103", f"{where}={value!r} should be {one.wanted}.") from None
    if new is None and name == "adafactor":
        return f"{name} is left out: {one.why}."
    # 0 and None ask for nothing, so that the other name's value counts
    if found.get(one.to) and new and found[one.to] != new:
        raise ConfigError(
            "CP104",
            f"{where}={value!r} is {one.to} by an old name, and {one.to}={found[one.to]!r} is "
            "given too; leave one of them out.",
        )
    found[one.to] = found.get(one.to) or new
    shown = "..." if "token" in name else repr(found[one.to])
    return f"{name} is taken as {one.to}={shown}: {one.why}."


def warn_of_old(sentences: Collection[str]) -> None:
    """Warn of options that were taken by old names; on one rank of several."""
    if os.environ.get("RANK", "0") == "0":
        for sentence in sentences:
            logging.getLogger("counterpoint").warning("%s %s", OLD, sentence)
