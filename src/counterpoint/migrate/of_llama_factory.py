"""What a LLaMA-Factory file means here.

Its defaults are those of transformers, so where it is silent they are written out. Read in its
repository (``src/llamafactory/hparams`` and ``train/dpo``).

Not here: its list of data sets (``dataset_info.json``), and its chat templates.
"""

from __future__ import annotations

from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.migrate.data_sets import OF_DRAWING, add_share
from counterpoint.migrate.draft import Draft
from counterpoint.migrate.of_kto import BASELINE, KTO, NEAREST, refuse_kto
from counterpoint.migrate.of_trl import COMES_SO
from counterpoint.migrate.old_adapters import begin_with_adapter
from counterpoint.objectives import DPO, called, names_of
from counterpoint.options.given import Scalar, Setting, as_python

TOOL = "LLaMA-Factory"
MARKS = ("stage", "finetuning_type", "pref_loss", "pref_beta", "cutoff_len", "lora_rank")
"""Names by which a file of the tool is known."""

KTO_OF_PAIRS = "kto_pair"
"""The tool's name for KTO on the two completions of each pair."""

_NOT_NEEDED = "there is nothing to set here"
_DATA_LIST = (
    "it is a name in LLaMA-Factory's dataset_info.json; give the file or hub id behind it as "
    "{option}"
)
MIXED = "several files of a stream are read one after the other"
REASONS = {
    "template": "the tokenizer's own chat template is used; chat_template takes a file with "
    "another, counterpoint tokens shows what is trained",
    "dataset_dir": "data sets are files or hub ids here",
    "media_dir": "there are no images or sounds in a pair",
    "overwrite_cache": "the cache knows by itself what has changed",
    "do_train": _NOT_NEEDED,
    "plot_loss": "metrics.jsonl in the run's folder holds every logged number",
    "packing": "padding and packing never change a result",
    "neat_packing": "padding and packing never change a result",
    "buffer_size": "a stream keeps its order; shuffle its shards, or the stream in a script",
    "data_shared_file_system": "ranks share what they prepare through a cache; "
    "COUNTERPOINT_CACHE names its folder",
    "quantization_method": "load_in_4bit and load_in_8bit quantise with bitsandbytes",
    "quantization_type": "load_in_4bit is nf4",
    "double_quantization": "scales are quantised too, always",
    "ref_model_adapters": "name the adapter's folder in reference",
    "ref_model_quantization_bit": "a reference is held as the model is",
    "pure_bf16": "the nearest is dtype: bfloat16 with stochastic_rounding: true, which needs "
    "torchao",
    "train_on_prompt": "a prompt's tokens never carry loss",
    "mask_history": "a prompt's turns never carry loss; of a completion's, train_turns says which "
    "do",
    "enable_thinking": "thoughts are trained where a completion has them; a column "
    "chat_template_kwargs, as {enable_thinking: false}, is given to the chat template",
    "upcast_layernorm": "trained weights are kept in float32",
    "use_unsloth": "the shared layout and the chunked head are on by themselves",
    "enable_liger_kernel": "the shared layout and the chunked head are on by themselves",
    "rope_scaling": "give it in the model's config.json",
}
NAMES = {
    "pref_beta": "beta",
    "ref_model": "reference",
    "dpo_label_smoothing": "label_smoothing",
    "preprocessing_num_workers": "dataset_num_proc",
    "max_samples": "max_rows",
    "lora_rank": "lora_r",
}
_OPTIONS = {"dataset": "dataset, several of them as datasets", "eval_dataset": "eval_dataset"}
_ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa"}


def of_llama_factory(draft: Draft) -> None:
    """Translate the settings of a file with ``stage: dpo``.

    Args:
        draft: with the file's settings.

    Raises:
        ConfigError: CP102 for a stage that does not train on preference pairs.
    """
    stage = draft.text("stage")
    if stage == KTO:
        raise refuse_kto(f"stage={stage}")
    if stage != "dpo":
        raise ConfigError(
            "CP102",
            f"stage={stage} trains on no preference pairs; what can be translated is stage: dpo "
            f"(with pref_loss {' or '.join(names_of(TOOL))}, best).",
        )
    _loss(draft)
    _adapter(draft)
    _data(draft)
    _defaults(draft)
    attention = draft.take("flash_attn")
    kind = None if attention is None else getattr(attention.given, "text", "")
    if kind in _ATTENTION:
        draft.put("attn_implementation", _ATTENTION[kind])
    elif attention is not None and kind != "auto":
        draft.leave(attention, "attn_implementation takes transformers' own names")
    if draft.switch("disable_gradient_checkpointing"):
        draft.put("gradient_checkpointing", False)
    draft.pass_on(REASONS, NAMES)


def _loss(draft: Draft) -> None:
    setting = draft.take("pref_loss")
    name = DPO.names[TOOL] if setting is None else str(as_python(setting.given))
    extra = _number(draft, "pref_ftx")
    loss = called(TOOL, name)
    if loss is None and setting is not None:
        why = f"there is no such loss here; what is written is {DPO.method}'s own"
        draft.leave(setting, f"{why}. {BASELINE}; {NEAREST}" if name == KTO_OF_PAIRS else why)
    loss = loss or DPO
    draft.put("loss_type", loss.name)
    own = loss.nll or 0.0
    if loss.needs_reference:
        option = "rpo_alpha"
        if extra:
            draft.put(option, extra, "was pref_ftx")
    else:
        option = "cpo_alpha"
        none = f"was pref_ftx, 0 where it is not given: {loss.method} has no NLL"
        draft.put(
            option, own + extra, f"{loss.method}'s own {own:g}, plus pref_ftx" if own else none
        )
    if extra or own:
        draft.notes.append(
            f"{option}: LLaMA-Factory takes the mean over pairs of means over tokens as NLL, "
            "Counterpoint the mean over a step's tokens."
        )
    if draft.peek("pref_beta") is None:
        draft.put("beta", 0.1, "LLaMA-Factory's default, which is DPO's")


def _number(draft: Draft, name: str) -> float:
    setting = draft.take(name)
    value: Any = 0.0 if setting is None else as_python(setting.given)
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if setting is not None:
        draft.leave(setting, "it should be a number, at least 0")
    return 0.0


def _adapter(draft: Draft) -> None:
    setting = draft.take("finetuning_type")
    kind = "lora" if setting is None else as_python(setting.given)
    new = draft.switch("create_new_adapter")
    if kind == "lora":
        if begin_with_adapter(draft, "adapter_name_or_path", "model_name_or_path", new=new):
            return
        if draft.peek("lora_rank") is None:
            draft.put("lora_r", 8, "LLaMA-Factory's default")
        _quantised(draft)
        for name, option in (
            ("lora_target", "lora_target_modules"),
            ("additional_target", "lora_modules_to_save"),
        ):
            setting = draft.take(name)
            if setting is None or as_python(setting.given) == "all":
                continue
            words = getattr(setting.given, "text", "")  # several in one text, as no option here is
            split = [Scalar(word.strip()) for word in words.split(",")] if words else setting.given
            draft.add(option, Setting(setting.name, split, setting.where))
        return
    if setting is not None and kind != "full":
        draft.leave(setting, "Counterpoint trains all weights or a LoRA adapter; all are written")
    others = ("additional_target", "adapter_name_or_path")
    of_adapters = [n for n in draft.rest if n.startswith("lora_") or n in others]
    for name in of_adapters:
        if unused := draft.take(name):
            draft.leave(unused, f"finetuning_type {kind} does not use it")


def _quantised(draft: Draft) -> None:
    setting = draft.take("quantization_bit")
    bits = None if setting is None else as_python(setting.given)
    method = draft.peek("quantization_method")
    if setting is None:
        return
    if bits in (4, 8) and method in (None, "bnb", "bitsandbytes"):
        draft.take("quantization_method")
        draft.put(f"load_in_{bits}bit", True, "was quantization_bit")
    else:
        draft.leave(setting, f"load_in_4bit and load_in_8bit are what there is; {COMES_SO}")


def _data(draft: Draft) -> None:
    for name in ("dataset", "eval_dataset"):
        setting = draft.take(name)
        if setting is not None:
            draft.leave(setting, _DATA_LIST.format(option=_OPTIONS[name]))
    add_share(draft, "val_size")
    for name in ("mix_strategy", "interleave_probs"):
        setting = draft.take(name)
        if setting is not None and as_python(setting.given) != "concat":  # as is always done
            draft.leave(setting, MIXED if draft.peek("streaming") is True else OF_DRAWING)


def _defaults(draft: Draft) -> None:
    """Where the tool's own defaults differ from those here, what it would have done."""
    if draft.peek("learning_rate") is None:
        draft.put("learning_rate", 5e-5, "LLaMA-Factory's default (transformers'); high")
    if draft.peek("cutoff_len") is None:
        draft.put("max_length", 2048, "LLaMA-Factory's default")
