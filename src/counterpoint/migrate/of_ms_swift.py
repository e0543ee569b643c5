"""What a command or file of ms-swift with preference training means here.

Read in its documentation (command-line parameters, custom data sets). Where it is silent and its
defaults differ from those here, they are written out.

Not here: its chat templates; rows of ``messages`` with ``rejected_response`` (``data.shapes``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError
from counterpoint.migrate.data_sets import OF_DRAWING, SHUFFLED, add_share, source_of
from counterpoint.migrate.draft import Draft
from counterpoint.migrate.of_kto import KTO, refuse_kto
from counterpoint.migrate.of_trl import COMES_SO, keep_nll, loss_of_dpo
from counterpoint.objectives import DPO, SIMPO, Loss, called, names_of
from counterpoint.options.given import as_python

TOOL = "ms-swift"
MARKS = ("rlhf_type",)
"""Names by which a file of the tool is known; it names its model as runs here do."""

PAIRS = 16
"""Pairs of a step on one device where nothing says how many."""

COLUMNS = {"query": "prompt", "response": "chosen", "rejected_response": "rejected"}
"""Its names of columns that are called otherwise here."""

_SET = re.compile(r"(.+?)(?::([^:#]+))?(?:#([0-9]+))?")
_OF_TEMPLATES = (
    "the tokenizer's own chat template is used; chat_template takes a file with another, "
    "counterpoint tokens shows what is trained"
)
REASONS = {
    "template": _OF_TEMPLATES,
    "adapters": "to train an adapter on, name its folder as the model, without lora_rank",
    "model_type": "the model's config and tokenizer say which classes they are",
    "system": "write it into the rows, as a column system",
    "interleave_prob": OF_DRAWING,
    "stopping_strategy": OF_DRAWING,
    "dataset_shuffle": SHUFFLED,
    "train_dataloader_shuffle": SHUFFLED,
    "load_from_cache_file": "the cache knows by itself what has changed",
    "truncation_strategy": "truncation says what is cut: completion_end, prompt_start, prompt_end "
    "or drop",  # what of it has a name here is written
    "packing": "padding and packing never change a result",
    "padding_free": "padding and packing never change a result",
    "quant_method": "load_in_4bit and load_in_8bit quantise with bitsandbytes",
    "add_version": "output_dir is the folder as it is",
    "use_hf": "names are of the Hugging Face hub, always",
    "logging_dir": "metrics.jsonl in the run's folder holds every logged number",
}
NAMES = {
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "target_parameters": "lora_target_parameters",
    "ref_model": "reference",
}
_TRUNCATION = {"delete": "drop", "left": "prompt_start", "right": "completion_end"}
_ATTENTION = {"flash_attn": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}


def of_ms_swift(draft: Draft) -> None:
    """Translate the settings of ``swift rlhf``.

    Args:
        draft: with the command's or the file's settings.

    Raises:
        ConfigError: CP102 for a kind that does not train on preference pairs.
    """
    _loss(draft)
    full = _adapter(draft)
    _data(draft)
    attention = draft.take("attn_impl")
    kind = None if attention is None else getattr(attention.given, "text", "")
    if kind in _ATTENTION:
        draft.put("attn_implementation", _ATTENTION[kind])
    elif attention is not None:
        draft.leave(attention, "attn_implementation takes transformers' own names")
    _precision(draft)
    _lengths(draft)
    _evaluation(draft)
    _defaults(draft, full=full)
    draft.pass_on(REASONS, NAMES)


def _loss(draft: Draft) -> None:
    setting = draft.take("rlhf_type")
    name = None if setting is None else str(as_python(setting.given))
    if (loss := called(TOOL, name)) is DPO:
        _mind_nll(draft)
        loss_of_dpo(draft)
    elif loss is not None:
        if draft.peek("loss_type") is None:
            draft.put("loss_type", loss.name)
        if loss.with_nll:
            keep_nll(draft, loss, TOOL)
        if loss.trl_nll:
            draft.notes.append(f"loss_type {loss.name}: {TOOL}, through TRL, {loss.trl_nll}.")
        if draft.peek("beta") is None and loss is SIMPO:
            draft.put("beta", 2.0, f"{TOOL}'s default")
    elif name == KTO:
        raise refuse_kto(f"rlhf_type={name}")
    else:
        raise ConfigError(
            "CP102",
            f"rlhf_type={name} trains on no preference pairs; what can be translated is rlhf_type: "
            f"{' or '.join(names_of(TOOL))}.",
        )
    if draft.peek("simpo_gamma") is None and _is_simpo(draft, loss):
        draft.put("simpo_gamma", 1.0, f"{TOOL}'s default")
    if draft.peek("beta") is None and "beta" not in draft.lines:
        draft.put("beta", 0.1, f"{TOOL}'s default")


def _mind_nll(draft: Draft) -> None:
    if draft.peek("rpo_alpha") is None and draft.peek("loss_weights") is None:
        draft.notes.append(
            f"rpo_alpha is not given: {TOOL} 3 before 3.8 then adds the NLL of the chosen with "
            "weight 1, and later releases add none, as is written here. Write rpo_alpha: 1.0 for "
            "what was trained with the former."
        )


def _is_simpo(draft: Draft, loss: Loss) -> bool:
    named = draft.peek("loss_type")
    return loss is SIMPO if named is None else named in (SIMPO.name, [SIMPO.name])


def _adapter(draft: Draft) -> bool:
    """Write the adapter; whether all weights are trained instead."""
    named = [draft.take(name) for name in ("tuner_type", "train_type")]
    setting = next(filter(None, named), None)
    kind = "lora" if setting is None else as_python(setting.given)
    if kind == "lora":
        _lora(draft)
        return False
    if setting is not None and kind != "full":
        draft.leave(setting, "Counterpoint trains all weights or a LoRA adapter; all are written")
    for name in [n for n in draft.rest if n.startswith(("lora_", "quant_")) or n in NAMES]:
        if unused := draft.take(name):
            draft.leave(unused, f"{kind} does not use it")
    return True


def _lora(draft: Draft) -> None:
    why = f"{TOOL}'s default"
    defaults = {"lora_rank": ("lora_r", 8), "lora_alpha": ("lora_alpha", 32)}
    for name, (option, value) in {**defaults, "lora_dropout": ("lora_dropout", 0.05)}.items():
        if draft.peek(name) is None:
            draft.put(option, value, why)
    if draft.peek("target_modules") in ("all-linear", ["all-linear"]):
        draft.take("target_modules")  # what is done here where none are named
    bits = draft.take("quant_bits")
    if bits is not None and as_python(bits.given) in (4, 8):
        draft.put(f"load_in_{as_python(bits.given)}bit", True, "was quant_bits")
    elif bits is not None:
        draft.leave(bits, f"load_in_4bit and load_in_8bit are what there is; {COMES_SO}")


def _data(draft: Draft) -> None:
    columns = _columns(draft)
    setting = draft.take("dataset")
    given = [] if setting is None else as_python(setting.given)
    words = [str(one) for one in (given if isinstance(given, list) else [given])]
    sets = [_listed(word, columns) for word in words]
    plain = [one["path"] for one in sets if len(one) == 1]
    if len(sets) == 1 and plain:
        draft.put("dataset", plain[0])
    elif sets:
        draft.put("datasets", sets)
    if any("rows" in one for one in sets):
        draft.notes.append(
            f"datasets: {TOOL} draws the rows behind #, and repeats them where there are fewer; "
            "rows takes the first ones."
        )
    if any(not _is_local(one["path"]) for one in sets) and draft.peek("use_hf") is not True:
        draft.notes.append(
            f"datasets: {TOOL} looks for names on ModelScope; see that the Hugging Face hub has "
            "them."
        )
    held = draft.take("val_dataset")
    if held is not None:
        draft.put("eval_dataset", as_python(held.given))
    add_share(draft, "split_dataset_ratio")


def _columns(draft: Draft) -> dict[str, str]:
    """Our names of columns, and those of the data: the tool has them the other way round."""
    setting = draft.take("columns")
    if setting is None:
        return {}
    given = as_python(setting.given)
    try:
        named = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        named = None
    if not isinstance(named, Mapping):
        draft.leave(setting, "it should be a mapping; columns of a set in datasets is one")
        return {}
    return {COLUMNS.get(str(ours), str(ours)): str(theirs) for theirs, ours in named.items()}


def _listed(word: str, columns: Mapping[str, str]) -> dict[str, Any]:
    found = _SET.fullmatch(word)
    path, subset, rows = (word, None, None) if found is None else found.groups()
    more = {"subset": subset, "columns": dict(columns), "rows": None if rows is None else int(rows)}
    return {"path": path, **{key: value for key, value in more.items() if value}}


def _is_local(path: str) -> bool:
    source = source_of(path)
    return path.startswith((".", "/", "~")) or (source is not None and source.is_files)


def _precision(draft: Draft) -> None:
    setting = draft.take("torch_dtype")
    kind = None if setting is None else as_python(setting.given)
    wanted = {"bfloat16": "bf16", "float16": "fp16", "float32": None}
    if kind in wanted:
        if (option := wanted[kind]) is not None and draft.peek(option) is None:
            draft.put(option, True, "was torch_dtype")
    elif setting is not None:
        draft.leave(setting, "bf16 and fp16 say what is computed in")


def _lengths(draft: Draft) -> None:
    """What becomes of rows that are too long: the tool leaves them out unless it is told."""
    strategy = draft.peek("truncation_strategy")
    if isinstance(strategy, str) and strategy in _TRUNCATION:
        draft.take("truncation_strategy")
        draft.put("truncation", _TRUNCATION[strategy], "was truncation_strategy")
    if draft.peek("max_length") is None:
        draft.notes.append(
            f"max_length is not given: {TOOL} then takes what the model can read, and here it is "
            f"{CPOConfig.max_length:,} tokens of prompt + completion. Write it out."
        )
    elif strategy is None:
        draft.put("truncation", "drop", f"{TOOL}'s default: longer rows are left out")


def _evaluation(draft: Draft) -> None:
    """When the run evaluates: where it holds rows out and says no more, whenever it saves."""
    held_out = {"eval_dataset", "eval_share"} & set(draft.lines)
    named = [draft.peek(name) for name in ("eval_strategy", "evaluation_strategy")]
    if not held_out or any(one is not None for one in named):
        return
    saves = draft.peek("save_strategy")
    strategy = saves if saves in ("no", "epoch") else "steps"
    draft.put("eval_strategy", strategy, f"{TOOL}'s default: as it saves")
    if strategy == "steps" and draft.peek("eval_steps") is None:
        every = draft.peek("save_steps")
        known = isinstance(every, int | float) and every > 0
        draft.put("eval_steps", every if known else 500, f"{TOOL}'s default: as it saves")


def _defaults(draft: Draft, *, full: bool) -> None:
    """Where the tool's own defaults differ from those here, what it would have done."""
    why = f"{TOOL}'s default"
    for name, value in (("weight_decay", 0.1), ("adam_beta2", 0.95)):
        if draft.peek(name) is None:
            draft.put(name, value, why)
    if draft.peek("learning_rate") is None:
        draft.put("learning_rate", 1e-5 if full else 1e-4, f"{why}; high")
    a_device = draft.peek("per_device_train_batch_size") or 1
    if draft.peek("per_device_train_batch_size") is None:
        draft.put("per_device_train_batch_size", 1, why)
    if draft.peek("gradient_accumulation_steps") is None and isinstance(a_device, int):
        many = max(1, -(-PAIRS // a_device))
        draft.put("gradient_accumulation_steps", many, f"{why} on one device")
    if draft.peek("lr_scheduler_type") is None:
        draft.put("lr_scheduler_type", "cosine", why)
    if all(draft.peek(name) is None for name in ("warmup_steps", "warmup_ratio")):
        draft.put("warmup_steps", 0.05, why)
