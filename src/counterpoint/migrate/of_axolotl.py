"""What an Axolotl file with preference training means here.

Read in its repository (``src/axolotl/utils/schemas`` and ``core/builders``). Where it is silent
and its defaults differ from those here, they are written out.

Not here: its plugins, and the row shapes of its ``type:`` names.
"""

from __future__ import annotations

from counterpoint.engine import FSDP_1
from counterpoint.errors import ConfigError
from counterpoint.migrate.data_sets import SHUFFLED, add_list, add_share
from counterpoint.migrate.draft import Draft
from counterpoint.migrate.of_kto import KTO, refuse_kto
from counterpoint.migrate.of_trl import COMES_SO, keep_nll
from counterpoint.migrate.old_adapters import begin_with_adapter
from counterpoint.objectives import called, names_of
from counterpoint.options.given import as_python

TOOL = "Axolotl"
MARKS = ("base_model", "rl", "sequence_len", "micro_batch_size", "num_epochs", "adapter")
"""Names by which a file of the tool is known."""

_BY_ITSELF = "the model's config and tokenizer say which classes they are"
_PACKING = "padding and packing never change a result"
_OFTEN = "write {name}_steps, or {name}_strategy: epoch"
REASONS = {
    "model_type": _BY_ITSELF,
    "tokenizer_type": _BY_ITSELF,
    "is_llama_derived_model": _BY_ITSELF,
    "gptq": COMES_SO,
    "batch_size": "a step's pairs are per_device_train_batch_size x gradient_accumulation_steps x "
    "ranks",
    "chat_template": "the tokenizer's own chat template is used; chat_template takes a file with "
    "another, counterpoint tokens shows what is trained",
    "chat_template_jinja": "write it to a file and name that in chat_template",
    "dataset_prepared_path": "prepared data sets are kept in datasets' cache",
    "sample_packing": _PACKING,
    "eval_sample_packing": _PACKING,
    "pad_to_sequence_len": _PACKING,
    "streaming_multipack_buffer_size": _PACKING,
    "train_on_inputs": "a prompt's tokens never carry loss",
    "special_tokens": "give them in the tokenizer's own files; padding never reaches the loss",
    "tokens": "add them to tokenizer and model before training",
    "lora_fan_in_fan_out": "peft finds it by itself",
    "shuffle_merged_datasets": SHUFFLED,
    "excess_length_strategy": "truncation says what is cut: completion_end, prompt_start, "
    "prompt_end or drop",
    "saves_per_epoch": _OFTEN.format(name="save"),
    "evals_per_epoch": _OFTEN.format(name="eval"),
    "wandb_project": "write report_to: wandb, and set WANDB_PROJECT where you run",
    "wandb_entity": "set WANDB_ENTITY where you run",
    "wandb_name": "write run_name",
    "xformers_attention": "transformers has no such attention; sdpa is its default",
    "plugins": "there are no plugins; the shared layout and the chunked head are on by themselves",
}
NAMES = {
    "revision_of_model": "revision",
    "tokenizer_config": "tokenizer",
    "rl_beta": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "dataset_processes": "dataset_num_proc",
    "eval_batch_size": "per_device_eval_batch_size",
}
_ATTENTION = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}


def of_axolotl(draft: Draft) -> None:
    """Translate the settings of a file with ``rl: simpo``, ``orpo`` or ``dpo``.

    Args:
        draft: with the file's settings.

    Raises:
        ConfigError: CP102 for a file that does not train on preference pairs.
    """
    _loss(draft)
    _adapter(draft)
    add_list(draft, "datasets", "dataset")
    add_list(draft, "test_datasets", "eval_dataset")
    add_share(draft, "val_set_size")
    for name, kind in _ATTENTION.items():
        if draft.switch(name):
            draft.put("attn_implementation", kind)
    _precision(draft)
    _sharding(draft)
    _rhythm(draft)
    _too_long(draft)
    _defaults(draft)
    draft.pass_on(REASONS, NAMES)


def _loss(draft: Draft) -> None:
    setting = draft.take("rl")
    name = None if setting is None else as_python(setting.given)
    if (loss := called(TOOL, name)) is not None:
        draft.put("loss_type", loss.name)
        if loss.with_nll and not loss.needs_reference:  # with one, rpo_alpha says it
            keep_nll(draft, loss, TOOL)
        if loss.trl_nll:
            draft.notes.append(f"loss_type {loss.name}: {TOOL}, through TRL, {loss.trl_nll}.")
        if loss.beta and (weight := draft.take(f"{name}_alpha")) is not None:
            draft.add("beta", weight, f"was {name}_alpha")
    elif name == KTO:
        raise refuse_kto(f"rl={name}")
    else:
        raise ConfigError(
            "CP102",
            f"rl={name} trains on no preference pairs; what can be translated is rl: "
            f"{' or '.join(names_of(TOOL))}.",
        )
    nested = draft.take("trl")
    if nested is None:
        return
    inner = nested.given if isinstance(nested.given, dict) else {}
    rest = {key: value for key, value in inner.items() if key != "beta"}
    if "beta" in inner:
        draft.add("beta", type(nested)("beta", inner["beta"], f"{nested.where}.beta"))
        draft.rest.pop("rl_beta", None)  # trl.beta goes before it
    if rest or not inner:
        draft.leave(type(nested)("trl", rest or nested.given, nested.where), "none of it is CPO's")


def _adapter(draft: Draft) -> None:
    for name in ("load_in_4bit", "load_in_8bit"):  # its examples spell out that they are off
        if draft.peek(name) is False:
            draft.take(name)
    setting = draft.take("adapter")
    kind = None if setting is None else as_python(setting.given)
    if kind == "qlora" and draft.peek("load_in_4bit") is None:
        draft.put("load_in_4bit", True, "was adapter: qlora")
    if kind in ("lora", "qlora"):
        if begin_with_adapter(draft, "lora_model_dir", "base_model", new=False):
            return
        if draft.switch("lora_target_linear"):
            draft.rest.pop("lora_target_modules", None)  # every linear layer, as here without it
        return
    if setting is not None:
        draft.leave(setting, "Counterpoint trains all weights or a LoRA adapter; all are written")
    for name in [n for n in draft.rest if n.startswith(("lora_", "peft_", "load_in_"))]:
        if unused := draft.take(name):
            draft.leave(unused, "there is no adapter: lora to use it")


def _sharding(draft: Draft) -> None:
    """Version 1 is the tool's default, with a list of words; version 2 has a mapping of details."""
    wanted, details = draft.take("fsdp"), draft.take("fsdp_config")
    version = draft.take("fsdp_version")
    inner = details.given if details is not None and isinstance(details.given, dict) else {}
    said = inner.get("fsdp_version", version.given if version is not None else None)
    if said is not None and str(as_python(said)) == "2":
        draft.put("fsdp", 2, "was fsdp_version: 2")
        rest = {key: value for key, value in inner.items() if key != "fsdp_version"}
        again = rest.pop("activation_checkpointing", None)
        if again is not None and as_python(again) is True:
            draft.put("gradient_checkpointing", True, "was activation_checkpointing of fsdp_config")
        if details is not None and rest:
            draft.leave(
                type(details)("fsdp_config", rest, details.where),
                "layers are found by themselves; what else differs goes into fsdp_config here",
            )
        return
    for setting in (wanted, details, version):
        if setting is not None:
            draft.leave(setting, FSDP_1)


def _too_long(draft: Draft) -> None:
    """Rows that are too long are left out, unless the file says otherwise."""
    given = draft.peek("excess_length_strategy")
    found = {None: "drop", "drop": "drop", "truncate": "completion_end"}
    if given is None or (isinstance(given, str) and given in found):
        draft.take("excess_length_strategy")
        why = "was excess_length_strategy" if given else "Axolotl's default"
        draft.put("truncation", found[given], f"{why}: rows that are longer than sequence_len")


def _rhythm(draft: Draft) -> None:
    """How often a run saves and evaluates, by the epoch: a share of the run, as the tool has it."""
    epochs = draft.peek("num_epochs")
    epochs = 1 if epochs is None else epochs
    for what in ("save", "eval"):
        name = f"{what}s_per_epoch"
        times = draft.peek(name)
        steps, strategy = draft.peek(f"{what}_steps"), draft.peek(f"{what}_strategy")
        if not all(map(_is_count, (times, epochs))) or steps is not None or strategy is not None:
            continue
        if times * epochs > 1:
            share = 1 / (times * epochs)
            draft.put(f"{what}_steps", share, f"was {name}: a share of the run")
        elif times == 1:
            draft.put(f"{what}_strategy", "epoch", f"was {name}")
        else:
            continue
        draft.take(name)
    asked = "eval_steps" in draft.lines or draft.peek("eval_steps") is not None
    if asked and draft.peek("eval_strategy") is None:
        draft.put("eval_strategy", "steps", "as Axolotl does where there are eval_steps")


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _precision(draft: Draft) -> None:
    for name in ("bf16", "tf32", "fp16"):
        value = draft.peek(name)
        if value == "auto":
            draft.take(name)  # left to the machine, as here without it
        elif value == "full" and (setting := draft.take(name)):
            draft.leave(
                setting,
                "the nearest is dtype: bfloat16 with stochastic_rounding: true, which needs "
                "torchao",
            )


def _defaults(draft: Draft) -> None:
    """Where the tool's own defaults differ from those here, what it would have done."""
    for name, option, value in (
        ("sequence_len", "max_length", 512),
        ("micro_batch_size", "per_device_train_batch_size", 1),
        ("num_epochs", "num_train_epochs", 1),
        ("lr_scheduler", "lr_scheduler_type", "cosine"),
    ):
        if draft.peek(name) is None and draft.peek(option) is None:
            draft.put(option, value, "Axolotl's default")
    if draft.peek("warmup_steps") is None and draft.peek("warmup_ratio") is None:
        draft.put("warmup_steps", 0.03, "Axolotl's default, there at most 100 steps")
