"""What TRL's options for CPO and ORPO mean here: files, commands and calls of its classes.

Not here: finding them in a script (``script_calls``) or a command (``foreign_files``).
"""

from __future__ import annotations

from counterpoint.cli.data_sets import add_list, add_sources, source_of
from counterpoint.cli.draft import Draft

NO_REFERENCE = "CPO and its relatives use no reference model"
QUANTISED = "quantised base models are not supported yet"

REASONS = {
    "ignore_bias_buffers": "ranks need no such care here",
    "lora_task_type": "it is always CAUSAL_LM",
    "bnb_4bit_quant_storage": QUANTISED,
    "max_steps_per_epoch": "max_steps limits the run",
    "env": "set environment variables where you run",
    "config": "counterpoint init --from that file translates it",
    "accelerate_config": "start several processes with torchrun",
    "num_processes": "start several processes with torchrun",
    "dataset_mixer": "a run reads files, or one data set of the hub; give it with --dataset",
    "dataset_splits": "give dataset_split, and eval_dataset_split",
    "device_map": "a model is whole on each rank's device",
    "quantization_config": QUANTISED,
    "test_split_size": "held-out rows are a data set of their own: eval_dataset",
}
NAMES = {"preprocessing_num_workers": "dataset_num_proc"}


def of_trl(draft: Draft, loss_type: str = "sigmoid") -> None:
    """Translate options of ``trl.experimental.cpo`` and its command, or of ``orpo``.

    Args:
        draft: with the options as settings.
        loss_type: of the class whose options they are, where they name none.
    """
    _loss(draft, loss_type)
    _adapter(draft)
    _data(draft)
    if draft.value("use_flash_attention_2") is True:
        draft.put("attn_implementation", "flash_attention_2")
    draft.pass_on(REASONS, NAMES)


def keep_nll(draft: Draft, tool: str) -> None:
    """Write out the NLL term that a tool adds to SimPO without being asked.

    Args:
        draft: whose loss is SimPO.
        tool: whose default it is.
    """
    if draft.peek("cpo_alpha") is not None:
        return
    draft.put("cpo_alpha", 1.0, f"{tool}'s default, kept: CPO-SimPO. 0.0 would be SimPO")
    draft.notes.append(
        f"loss_type simpo without cpo_alpha: {tool} then adds the NLL of the chosen with weight "
        "1, so what was trained is CPO-SimPO. Kept as it was; write cpo_alpha: 0.0 for SimPO."
    )


def _loss(draft: Draft, loss_type: str) -> None:
    if loss_type == "orpo":
        draft.put("loss_type", "orpo")
        draft.notes.append(
            "loss_type orpo: TRL takes the NLL over prompt and chosen completion, Counterpoint "
            "over the completion alone."
        )
    elif draft.peek("loss_type") is None and loss_type != "sigmoid":
        draft.put("loss_type", loss_type)
    if loss_type != "orpo" and draft.peek("loss_type") == "simpo":
        keep_nll(draft, "TRL")


def _adapter(draft: Draft) -> None:
    asked = draft.value("use_peft")
    if asked is True:
        if draft.peek("lora_r") is None:
            draft.put("lora_r", 16, "TRL's default")
        if draft.peek("lora_alpha") is None:
            draft.put("lora_alpha", 32, "TRL's default")
    for name in [name for name in draft.rest if name.startswith("lora_")]:
        if asked is not True and (setting := draft.take(name)):
            draft.leave(setting, "without use_peft TRL trains all weights")
    if draft.peek("lora_target_modules") in ("all-linear", ["all-linear"]):
        draft.take("lora_target_modules")  # what is done here where none are named


def _data(draft: Draft) -> None:
    add_list(draft, "datasets", "dataset")
    split, held_out = draft.value("dataset_train_split"), draft.take("dataset_test_split")
    named, config = draft.take("dataset_name"), draft.value("dataset_config")
    path = None if named is None else named.given
    if named is None or "dataset" in draft.lines:
        if named is not None:
            draft.leave(named, "TRL ignores it beside datasets")
        return
    source = source_of(str(getattr(path, "text", "")), config, None, split)
    if source is None or not source.path[0]:
        draft.leave(named, "it names no data set")
        return
    add_sources(draft, [source], "dataset", named.where)
    strategy = draft.peek("eval_strategy") or draft.peek("evaluation_strategy")
    if strategy not in (None, "no"):
        test = "test" if held_out is None else str(getattr(held_out.given, "text", "test"))
        held_out_source = source_of(source.path[0], config, None, test)
        if held_out_source is not None:
            add_sources(draft, [held_out_source], "eval_dataset", named.where)
