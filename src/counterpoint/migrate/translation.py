"""Another tool's file as options of ``counterpoint train``: read, translated, checked together.

Not here: what each tool's options mean (``of_trl``, ``of_llama_factory``, ``of_axolotl``,
``of_ms_swift``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.doctor.presets import betas_of
from counterpoint.errors import CounterpointError
from counterpoint.migrate.data_sets import add_sources
from counterpoint.migrate.draft import Draft, Translation
from counterpoint.migrate.foreign_files import STANDARD, read_foreign, settings_of_command, tool_of
from counterpoint.migrate.of_axolotl import of_axolotl
from counterpoint.migrate.of_kto import MARKS_OF_KTO, refuse_kto
from counterpoint.migrate.of_llama_factory import MARKS as LLAMA_FACTORY_MARKS
from counterpoint.migrate.of_llama_factory import TOOL as LLAMA_FACTORY
from counterpoint.migrate.of_llama_factory import of_llama_factory
from counterpoint.migrate.of_ms_swift import MARKS as SWIFT_MARKS
from counterpoint.migrate.of_ms_swift import TOOL as SWIFT
from counterpoint.migrate.of_ms_swift import of_ms_swift
from counterpoint.migrate.of_trl import loss_of_file, of_trl
from counterpoint.migrate.run_file import as_yaml
from counterpoint.migrate.script_calls import Script
from counterpoint.objectives import LOSSES, OBJECTIVE_OPTIONS
from counterpoint.options.run_options import RunOptions
from counterpoint.options.settings import build_config
from counterpoint.options.table import RUN, options
from counterpoint.options.yaml_file import settings_of

_ASK_FOR_EVAL = ("eval_strategy", "eval_on_start", "load_best_model_at_end", "do_eval")
_OF_EVAL = (
    *_ASK_FOR_EVAL,
    "eval_steps",
    "eval_delay",
    "per_device_eval_batch_size",
    "metric_for_best_model",
    "greater_is_better",
    "eval_dataset_split",
)
_OF_LOSSES = tuple(name for name in OBJECTIVE_OPTIONS if name not in ("loss_type", "beta"))
"""Options that the command refuses, or sets itself, with losses that do not read them."""
_FAR = 4
"""Factor below published values of beta from which it is another loss's."""


def translation_of(path: str, *, model: str | None, dataset: Sequence[str]) -> Translation:
    """Read another tool's file and say it in options of ``counterpoint train``.

    Args:
        path: of the file; ``-`` for standard input.
        model: in place of the one that it names.
        dataset: in place of what it names.

    Raises:
        ConfigError: CP106 where it cannot be read as such a file, CP102 where it does not train
            on preference pairs.
    """
    text, kind = read_foreign(path)
    source = "standard input" if path == STANDARD else Path(path).name
    read: dict[str, Callable[[str, str], tuple[str, Draft]]] = {
        "python": _of_script,
        "shell": _of_command,
        "yaml": _of_yaml,
    }
    tool, draft = read[kind](text, source)
    _replace(draft, model, dataset)
    _drop_what_does_nothing(draft)
    _mind(draft)
    return Translation(
        source, tool, tuple(draft.lines.values()), tuple(draft.left), tuple(draft.notes)
    )


def _of_script(text: str, source: str) -> tuple[str, Draft]:
    script = Script(text, source)
    draft = Draft(script.settings)
    draft.left += script.left
    for name, found in script.sources.items():
        add_sources(draft, [found], name.removeprefix("train_"), f"{script.name}: {name}")
    with_adapter = "lora_r" in draft.rest
    for name in [name for name in draft.rest if with_adapter and _of_adapter(name)]:
        draft.add(name, draft.rest.pop(name))
    of_trl(draft, script.loss_type)
    return "a script that uses TRL", draft


def _of_adapter(name: str) -> bool:
    return name.startswith("lora_") or name in ("use_rslora", "use_dora")


def _of_command(text: str, source: str) -> tuple[str, Draft]:
    settings, left, loss_type = settings_of_command(text, source)
    draft = Draft(settings)
    draft.left += left
    if set(draft.rest).intersection(SWIFT_MARKS):
        of_ms_swift(draft)
        return f"a command of {SWIFT}", draft
    if set(draft.rest).intersection(LLAMA_FACTORY_MARKS):
        of_llama_factory(draft)
        return f"a command of {LLAMA_FACTORY}", draft
    of_trl(draft, loss_type)
    return "a command of TRL", draft


def _of_yaml(text: str, source: str) -> tuple[str, Draft]:
    settings = settings_of(text, source)
    tool = tool_of(settings, source)
    draft = Draft(settings)
    if tool == "TRL":
        of_kto = next((name for name in MARKS_OF_KTO if draft.peek(name) is not None), None)
        if of_kto is not None:
            raise refuse_kto(f"{source}: {of_kto}")
        of_trl(draft, loss_of_file(draft))
        return "a file of TRL", draft
    translators: dict[str, Callable[[Draft], None]] = {
        LLAMA_FACTORY: of_llama_factory,
        "Axolotl": of_axolotl,
        SWIFT: of_ms_swift,
    }
    translators[tool](draft)
    return f"a file of {tool}", draft


def _replace(draft: Draft, model: str | None, dataset: Sequence[str]) -> None:
    """Put in what the command line gives, and say what is still missing."""
    if model:
        draft.put("model", model)
    if dataset:
        draft.put("dataset", dataset[0] if len(dataset) == 1 else list(dataset))
    told = {"model": bool(model), "dataset": bool(dataset)}
    for name, of in (
        ("create_new_adapter", "model"),
        ("revision", "model"),
        ("tokenizer", "model"),
        ("dataset_split", "dataset"),
    ):
        if told[of] and name in draft.lines:
            _drop(draft, name, f"it was of what --{of} replaces")
    if dataset and "datasets" in draft.lines:
        _drop(draft, "datasets", "--dataset replaces it")
    for name, other in (("model", "model"), ("dataset", "datasets")):
        if not {name, other} & set(draft.lines):
            draft.notes.append(
                f"{name} is missing, and the run needs it: write it, or add --{name}."
            )


def _drop_what_does_nothing(draft: Draft) -> None:
    """Leave out what the command would refuse because nothing would read it."""
    loss_type = _value(draft, "loss_type")
    for name in _OF_LOSSES:
        if name in draft.lines and not LOSSES[loss_type].reads(name):
            _drop(draft, name, f"it does nothing with loss_type {loss_type}")
    if not {"eval_dataset", "eval_share"} & set(draft.lines):
        for name in [name for name in _OF_EVAL if name in draft.lines]:
            if draft.lines[name].value not in (False, "no"):
                _drop(draft, name, "there is no eval_dataset; write both to evaluate")
            else:
                del draft.lines[name]


def _drop(draft: Draft, name: str, reason: str) -> None:
    line = draft.lines.pop(name)
    draft.left.append(f"{name}={as_yaml(line.value)}: {reason}.")


def _mind(draft: Draft) -> None:
    """What to look at before the run, and what the command would still refuse."""
    loss_type, beta = _value(draft, "loss_type"), _value(draft, "beta")
    published = betas_of(loss_type)
    of_means = LOSSES[loss_type].per_token and LOSSES[loss_type].beta_scales_gap
    if of_means and published and beta < min(published) / _FAR:
        draft.notes.append(
            f"beta={beta:g} is of the size that CPO and DPO take, whose rewards are sums over "
            f"tokens; published {loss_type} runs have {min(published):g} to {max(published):g}, "
            "and others collapsed. Kept as it was; counterpoint init --list shows the settings."
        )
    if draft.lines.get("streaming") and _value(draft, "streaming") and not _steps(draft):
        draft.notes.append("max_steps is missing, and a streamed data set needs it.")
    if draft.lines.get("streaming") and _value(draft, "streaming"):
        # no other tool has such an option: one rank reads, or datasets splits by the ranks there
        draft.notes.append(
            "streaming: every rank reads the whole stream. stream_shards, a number that all ranks "
            "you may ever have divide, lets each read a share of the shards instead "
            "(docs/data.md)."
        )
    values = {line.name: line.value for line in draft.lines.values()}
    run = {name: values.pop(name) for name in tuple(values) if options()[name].group == RUN}
    try:
        if "model" in run and {"dataset", "datasets"} & set(run):
            RunOptions(**run)
        build_config({"output_dir": "run", **deepcopy(values)})  # transformers completes them
    except CounterpointError as error:
        draft.notes.append(f"counterpoint train refuses this as it is: {error}")


def _steps(draft: Draft) -> bool:
    return bool(_value(draft, "max_steps") > 0)


def _value(draft: Draft, name: str) -> Any:
    """What an option is in the file, or its default."""
    line = draft.lines.get(name)
    return getattr(CPOConfig, name, None) if line is None else line.value
