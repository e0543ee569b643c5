"""What TRL's options for CPO, ORPO, DPO and TPO mean here: files, commands, calls of its classes.

Not here: finding them in a script (``script_calls``) or a command (``foreign_files``).
"""

from __future__ import annotations

from typing import Any

from counterpoint.migrate.data_sets import Source, add_list, add_share, add_sources, source_of
from counterpoint.migrate.draft import Draft
from counterpoint.objectives import (
    DEFAULT_LOSS,
    DPO,
    INITIAL,
    LOSSES,
    ORPO,
    SIMPO,
    TPO,
    TPO_L,
    Loss,
    called,
)
from counterpoint.options.given import Scalar, Setting, as_python

NF4 = "load_in_4bit is nf4 with scales quantised too, and computes in the precision of the run"
COMES_SO = "a model that is quantised already is given by its name alone"
_ALWAYS_FIRST = "the reference is asked once, before the first step, always"
_MOVING = "the reference stays what it was"

REASONS = {
    "ignore_bias_buffers": "ranks need no such care here",
    "lora_task_type": "it follows from the model",
    "bnb_4bit_quant_type": NF4,
    "use_bnb_nested_quant": NF4,
    "bnb_4bit_use_double_quant": NF4,
    "bnb_4bit_compute_dtype": NF4,
    "bnb_4bit_quant_storage": "it is set where weights are sharded",
    "max_steps_per_epoch": "max_steps limits the run",
    "env": "set environment variables where you run",
    "config": "counterpoint init --from that file translates it",
    "accelerate_config": "start several processes with torchrun",
    "num_processes": "start several processes with torchrun",
    "dataset_mixer": "it takes the first rows of each set, by a share of them; list the sets in "
    "datasets, with rows, or with a weight, which takes other rows each epoch",
    "dataset_splits": "name them in dataset_split and eval_dataset_split",
    "dataset_configs": "write them into datasets, each as the subset of its set",
    "auto_insert_empty_system_msg": "a row's turns are what the template is given",
    "sft_weight": "write cpo_alpha, the weight of the NLL of the chosen completion",
    "device_map": "a model is whole on each rank's device",
    "quantization_config": "write load_in_4bit or load_in_8bit, with lora_r",
    "ref_model_init_kwargs": "a reference is held as the model is",
    "precompute_ref_log_probs": _ALWAYS_FIRST,
    "precompute_ref_batch_size": _ALWAYS_FIRST,
    "ref_model_mixup_alpha": _MOVING,
    "ref_model_sync_steps": _MOVING,
    "sync_ref_model": _MOVING,
    "f_divergence_type": "the reverse KL is what there is",
    "f_alpha_divergence_coef": "the reverse KL is what there is",
    "tpo_l_gamma": "it is TPO-L's margin, and loss_type is another",
}
MARKS_OF_DPO = (
    *("ref_model", "ref_model_init_kwargs", "precompute_ref_log_probs"),
    *("sync_ref_model", "rpo_alpha", "loss_weights", "f_divergence_type", "reference_free"),
)
"""Names by which a file of TRL is one of its DPO: such files do not say whose they are."""

MARKS_OF_TPO = ("tpo_alpha", "tpo_l_gamma")
"""Names by which it is one of its TPO."""

MARKS_OF_HANDBOOK = ("dataset_mixer", "dataset_mixture")
"""Names by which it is one of the alignment handbook, or of who follows it."""

MARKS_OF_CPO = ("cpo_alpha", "simpo_gamma", "gamma_beta_ratio", "gamma", "alpha")
"""Names by which it is one of its CPO."""

_OF_SIMPO = ("gamma_beta_ratio", "gamma")
_OF_DATA = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
NAMES = {"preprocessing_num_workers": "dataset_num_proc"}


def loss_of_file(draft: Draft) -> str:
    """The loss of the command that reads a file, which does not say which one that is.

    Args:
        draft: with the file's settings; a guess is noted on it.

    Returns:
        A name of ``DEFAULTS_OF_TRL``.
    """
    given = draft.rest.keys()
    named = draft.peek("loss_type")
    if given & set(MARKS_OF_TPO) or named == TPO_L.names["TPOTrainer"]:
        return TPO.name
    of_cpo = named is None or any(
        row.trl == LOSSES[DEFAULT_LOSS].trl and row.name == named for row in LOSSES.values()
    )
    if given & set(MARKS_OF_DPO) or not of_cpo:
        return DPO.name
    if given & set(MARKS_OF_CPO):
        return DEFAULT_LOSS
    if given & set(MARKS_OF_HANDBOOK):
        draft.notes.append(
            "The alignment handbook's files do not say which of its scripts reads them: read as "
            f"one of its DPO. If it was one of its ORPO, write loss_type: {ORPO.name}."
        )
        return DPO.name
    draft.notes.append(
        "TRL's files do not say which command reads them: read as one of trl cpo. If it was one of "
        f"trl dpo, write loss_type: {DPO.name}."
    )
    return DEFAULT_LOSS


def of_trl(draft: Draft, loss_type: str = DEFAULT_LOSS) -> None:
    """Translate options of ``trl.experimental.cpo`` and its command, or of orpo, tpo or dpo.

    Args:
        draft: with the options as settings.
        loss_type: of the class whose options they are, where they name none.
    """
    _loss(draft, loss_type)
    _reference(draft)
    _adapter(draft)
    _data(draft)
    if draft.switch("use_flash_attention_2"):
        draft.put("attn_implementation", "flash_attention_2")
    _translator(draft)
    draft.pass_on(REASONS, NAMES)


def _translator(draft: Draft) -> None:
    if draft.peek("is_encoder_decoder") is not True:
        return
    told = any(draft.peek(name) for name in ("source_lang", "target_lang", "src_lang", "tgt_lang"))
    draft.notes.append(
        "an encoder-decoder: TRL tokenizes completions as if they were sources; here they are "
        "targets, in their own language and vocabulary."
        + ("" if told else " Tokenizers of many languages need source_lang and target_lang.")
    )


def keep_nll(draft: Draft, loss: Loss, tool: str) -> None:
    """Write out the NLL term that a tool adds to SimPO without being asked.

    Args:
        draft: to write on.
        loss: published without that term.
        tool: whose default it is.
    """
    if draft.peek("cpo_alpha") is not None:
        return
    kept = f"{tool}'s default, kept: {loss.with_nll}. 0.0 would be {loss.method}"
    draft.put("cpo_alpha", 1.0, kept)
    draft.notes.append(
        f"loss_type {loss.name} without cpo_alpha: {tool} then adds the NLL of the chosen with "
        f"weight 1, so what was trained is {loss.with_nll}. Kept as it was; write cpo_alpha: 0.0 "
        f"for {loss.method}."
    )


def _loss(draft: Draft, loss_type: str) -> None:
    loss = LOSSES[loss_type]
    if loss in (DPO, TPO):
        (loss_of_dpo if loss is DPO else _loss_of_tpo)(draft)
        return
    if loss_type != DEFAULT_LOSS:
        draft.put("loss_type", loss_type)
        draft.notes.append(f"loss_type {loss_type}: TRL {loss.trl_nll}.")
        return
    named = draft.peek("loss_type")
    if named is None and any(map(draft.peek, _OF_SIMPO)):
        draft.put("loss_type", SIMPO.name, "its options are those of SimPO's own repository")
        if draft.peek("cpo_alpha") is None:
            draft.put("cpo_alpha", 0.0, "no NLL term, as there")
    asked = LOSSES.get(str(named))
    if asked is not None and asked.with_nll:
        keep_nll(draft, asked, "TRL")


def loss_of_dpo(draft: Draft) -> None:
    """Write the loss of TRL's DPO, which has losses of its own, one or several with weights.

    Args:
        draft: with the options as settings.
    """
    setting, weights = draft.take("loss_type"), draft.take("loss_weights")
    given = None if setting is None else as_python(setting.given)
    first, *more = map(str, given) if isinstance(given, list) and given else [str(given or "")]
    loss = DPO if not first else called("DPOTrainer", first)
    share = _share_of_nll(1.0 if weights is None else as_python(weights.given))
    with_nll = more == ["sft"] and share is not None
    if setting is not None and (loss is None or (more and not with_nll)):
        draft.leave(setting, f"there is no such loss here; what is written is {DPO.method}'s")
        loss, with_nll = DPO, False
    draft.put("loss_type", (loss or DPO).name)
    if with_nll:
        draft.put("rpo_alpha", share, "was the weight of sft")
    if weights is not None and not with_nll:
        draft.leave(weights, "a run has one loss")
    if draft.switch("reference_free"):
        draft.put("loss_type", DEFAULT_LOSS, "was reference_free")
        draft.put("cpo_alpha", 0.0, "no NLL term, as there")


def _loss_of_tpo(draft: Draft) -> None:
    """Write the loss of TRL's TPO, whose gold completions stand in the column ``reference``."""
    setting = draft.take("loss_type")
    named = "" if setting is None else str(as_python(setting.given))
    loss = TPO if not named else called("TPOTrainer", named)
    if setting is not None and loss is None:
        draft.leave(setting, f"there is no such loss here; what is written is {TPO.method}'s")
    draft.put("loss_type", (loss or TPO).name)
    for option, value in (("beta", 0.01), ("learning_rate", 5e-7)):
        if draft.peek(option) is None:
            draft.put(option, value, "TRL's default for TPO")
    names = {"tpo_alpha": "cpo_alpha"}
    names |= {"tpo_l_gamma": "simpo_gamma"} if loss is TPO_L else {}
    for name, option in names.items():
        if (given := draft.take(name)) is not None:
            draft.add(option, given, f"was {name}")


def _share_of_nll(weights: Any) -> float | None:
    """The weight of the second of two losses where the first has 1; None for what is no two."""
    pair = [1.0, weights] if isinstance(weights, float) else weights
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    if not all(isinstance(one, int | float) and 1e-9 < one < 1e9 for one in pair):
        return None
    return float(pair[1] / pair[0])


def _reference(draft: Draft) -> None:
    """A reference that is named; none is the model as it begins, there and here."""
    if draft.peek("ref_model") in (None, "", INITIAL):
        draft.take("ref_model")
    elif (setting := draft.take("ref_model")) is not None:
        draft.add("reference", setting, "was ref_model")


def _adapter(draft: Draft) -> None:
    asked = draft.switch("use_peft")
    if asked:
        if draft.peek("lora_r") is None:
            draft.put("lora_r", 16, "TRL's default")
        if draft.peek("lora_alpha") is None:
            draft.put("lora_alpha", 32, "TRL's default")
    for name in [name for name in draft.rest if name.startswith("lora_")]:
        if not asked and (setting := draft.take(name)):
            draft.leave(setting, "without use_peft TRL trains all weights")
    if draft.peek("lora_target_modules") in ("all-linear", ["all-linear"]):
        draft.take("lora_target_modules")  # what is done here where none are named


def _data(draft: Draft) -> None:
    _sets(draft)
    _mixer(draft)
    _mixture(draft)
    add_share(draft, "test_split_size")


def _mixer(draft: Draft) -> None:
    """The sets of the alignment handbook, where each is taken whole."""
    given, splits = draft.peek("dataset_mixer"), draft.peek("dataset_splits")
    whole = isinstance(given, dict) and given and all(share == 1 for share in given.values())
    if not whole or {"dataset", "datasets"} & set(draft.lines):
        return
    named = [str(one) for one in splits] if isinstance(splits, list) else []
    train = next((one for one in named if "train" in one), None)
    held_out = [one for one in named if one != train]
    draft.take("dataset_mixer")
    if train is not None or not named:
        draft.take("dataset_splits")
    add_sources(draft, [Source((path,), None, train) for path in given], "dataset", "dataset_mixer")
    if train is not None and held_out:
        _held_out(draft, [Source((path,), None, held_out[0]) for path in given], held_out)


def _held_out(draft: Draft, sources: list[Source], splits: list[str]) -> None:
    """The handbook's splits to evaluate on, which it reads where it evaluates."""
    asked = draft.peek("eval_strategy") or draft.peek("evaluation_strategy")
    if asked in (None, "no") and draft.peek("do_eval") is not True:
        draft.left.append(
            f"dataset_splits={', '.join(splits)}: without eval_strategy nothing reads it."
        )
        return
    add_sources(draft, sources, "eval_dataset", "dataset_mixer")
    for more in splits[1:]:
        draft.left.append(f"dataset_splits={more}: a run evaluates on one split of a set.")


def _mixture(draft: Draft) -> None:
    """The sets of today's handbook: each whole, or a part of it that is drawn once."""
    setting = draft.take("dataset_mixture")
    if setting is None:
        return
    given = as_python(setting.given)
    entries = given.get("datasets") if isinstance(given, dict) else None
    sources = [_of_mixture(one) for one in entries] if isinstance(entries, list) else []
    if not sources or None in sources or {"dataset", "datasets"} & set(draft.lines):
        draft.leave(setting, "list its sets in datasets, each with path, subset, split and weight")
        return
    found = [one for one in sources if one is not None]
    add_sources(draft, found, "dataset", "dataset_mixture")
    if any(one.weight != 1 for one in found):
        draft.notes.append(
            "dataset_mixture: a weight below 1 takes that part of a set, drawn once by its seed; "
            "here an epoch takes as many rows, and the next one others."
        )
    share = given.get("test_split_size")
    if share is not None and draft.peek("test_split_size") is None:
        draft.rest["test_split_size"] = Setting(
            "test_split_size", Scalar(str(share)), setting.where
        )


def _of_mixture(entry: Any) -> Source | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    weight = entry.get("weight")
    number = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
    if weight is not None and not number:
        return None
    config, split = (
        None if entry.get(name) is None else str(entry[name]) for name in ("config", "split")
    )
    whole = 1.0 if weight is None else float(weight)
    return Source((entry["id"],), config, split, weight=whole)


def _sets(draft: Draft) -> None:
    add_list(draft, "datasets", "dataset")
    given = {name: draft.take(name) for name in _OF_DATA}
    path, config, train, test = (
        setting.given.text if setting and isinstance(setting.given, Scalar) else None
        for setting in given.values()
    )
    strategy = draft.peek("eval_strategy") or draft.peek("evaluation_strategy")
    source = source_of(path or "json", config, None, train)
    if source is None or {"dataset", "datasets"} & set(draft.lines):
        for setting in filter(None, given.values()):
            draft.leave(setting, "there is no dataset_name that counts")
        return
    add_sources(draft, [source], "dataset", "dataset_name")
    if strategy not in (None, "no"):
        held_out = Source(source.path, config, test or "test")
        add_sources(draft, [held_out], "eval_dataset", "dataset_name")
    elif (unused := given["dataset_test_split"]) is not None:
        draft.leave(unused, "without eval_strategy TRL does not look at it")
