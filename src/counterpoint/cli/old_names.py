"""Names that users of TRL and of older transformers bring with them, and what replaces each.

Only names that are no option here; ``options`` quotes the line when one of them is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_TRUNCATION = "max_length limits prompt + completion and truncation says what to cut"
_NO_REFERENCE = "CPO and its relatives use no reference model; leave it out"
_QUANTISED = "quantised base models are not supported yet; leave it out"

OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        # TRL's CPOConfig in earlier releases
        "max_prompt_length": f"{_TRUNCATION} (prompt_start or prompt_end cut the prompt)",
        "max_target_length": "write max_completion_length",
        "truncation_mode": f"{_TRUNCATION}: keep_end is truncation: prompt_start",
        "label_pad_token_id": "nothing is padded with labels; leave it out",
        "padding_value": "padding never reaches the loss; leave it out",
        "padding_free": "layout and padding never change a result; leave it out",
        "pad_token": "padding never reaches the loss; leave it out",
        "gamma": "write simpo_gamma",
        "gamma_ratio": "write gamma_beta_ratio",
        "alpha_po": "write alpha with loss_type: alphapo",
        "loss": "write loss_type",
        "rpo_alpha": "write cpo_alpha, the weight of the NLL of the chosen completion",
        "ref_model": _NO_REFERENCE,
        "reference_free": _NO_REFERENCE,
        "precompute_ref_log_probs": _NO_REFERENCE,
        "sync_ref_model": _NO_REFERENCE,
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
        "lora_task_type": "it is always CAUSAL_LM; leave it out",
        "load_in_8bit": _QUANTISED,
        "load_in_4bit": _QUANTISED,
        "bnb_4bit_quant_type": _QUANTISED,
        "use_bnb_nested_quant": _QUANTISED,
        # transformers before 5, and shorter names
        "evaluation_strategy": "write eval_strategy",
        "warmup_ratio": "write warmup_steps; below 1 it is a share of the run",
        "no_cuda": "write use_cpu",
        "use_mps_device": "an accelerator is found by itself; leave it out",
        "fp16_opt_level": "apex is gone from transformers; leave it out",
        "half_precision_backend": "apex is gone from transformers; leave it out",
        "fp16_backend": "apex is gone from transformers; leave it out",
        "save_safetensors": "weights are always saved as safetensors; leave it out",
        "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
        "group_by_length": "choosing pairs by length would change what a step is made of",
        "adafactor": "write optim: adafactor",
        "jit_mode_eval": "it is gone from transformers; leave it out",
        "torchdynamo": "write torch_compile",
        "push_to_hub_token": "write hub_token",
        "push_to_hub_model_id": "write hub_model_id",
        "include_tokens_per_second": "write include_num_input_tokens_seen",
        "per_gpu_train_batch_size": "write per_device_train_batch_size",
        "per_gpu_eval_batch_size": "write per_device_eval_batch_size",
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
        "overwrite": "write overwrite_output_dir",
    }
)

_RENAMED = re.compile(r"write (\w+)(;.*)?")


def renamed(name: str) -> str | None:
    """The option that an old name is another word for; None where it is not just that."""
    found = _RENAMED.fullmatch(OLD_NAMES.get(name, ""))
    return found[1] if found else None
