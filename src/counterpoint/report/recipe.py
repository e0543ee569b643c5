"""How a run is made again: the file that it was given, or a script for one made in Python.

A run of the command has its request in its facts (``given``), all that its user set and nothing
else; that is its recipe. Of one made in Python the options, the adapter and the names of the sets
are known, and what was handed over as objects (rows, a tokenizer, callbacks) is said to be missing.

Nothing of the machine gets in: files and folders are reduced to their names, and options that
hold a path are left out and named.

Not here: the rest of the card (``card``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from counterpoint._version import __version__
from counterpoint.report.objective import chosen_options
from counterpoint.runlog import Run

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_LOCAL = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]")
_PRIVATE = frozenset(
    {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "push_to_hub"}
    | {"hub_model_id", "hub_strategy", "hub_private_repo", "report_to", "disable_tqdm"}
    | {"hub_token", "resume", "resume_anyway", "overwrite_output_dir"}
)
"""Options that say where a run was written or shown, and nothing of what was trained."""

_FILES = ("model", "tokenizer", "chat_template", "dataset", "eval_dataset")
"""Options of the command that name files, folders or ids of the hub."""

ROWS = "PAIRS.jsonl"
"""What stands for rows whose source is not known."""

MADE_IN_MEMORY = "MODEL"
"""What stands for a model without a name."""


def hub_id(name: str) -> str:
    """A model's or data set's id on the hub; "" where the name is that of a folder.

    Args:
        name: as it was given to load it.
    """
    return name if _HUB_ID.fullmatch(name) and not _LOCAL.match(name) else ""


def recipe(run: Run, *, base: str, datasets: tuple[str, ...]) -> Iterator[str]:
    """The section of the card; nothing where the run did not write down its options.

    Args:
        run: its facts.
        base: hub id or name of the model that training began with; "" for one made in memory.
        datasets: hub ids of the training data.
    """
    given = run.facts.get("given")
    if isinstance(given, Mapping):
        text, missing = _file(given)
        how = (
            f"`run.yaml`, beside the files that it names:\n\n```yaml\n{text}```\n\n"
            "```sh\ncounterpoint train run.yaml --output_dir out\n```"
        )
    elif chosen_options(run.facts):
        text, missing = _script(run, base, datasets)
        how = f"```python\n{text}```\n\nThe run was made in Python. {_handed_over(base, datasets)}"
    else:
        return
    left_out = f"Left out, for they hold paths: {', '.join(missing)}.\n\n" if missing else ""
    yield (
        f"## How to make it again\n\n{how}\n\n{left_out}"
        f"with Counterpoint {__version__}{_installed(run)}.\n"
    )


def _installed(run: Run) -> str:
    """How the Counterpoint that trained was installed; no index is known to hold it."""
    how = str((run.facts.get("environment") or {}).get("installed") or "")
    return f", installed {how}" if how else ""


# A run of the command


def _file(given: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The request as YAML, and the names of what had to be left out."""
    shown = {name: _as_public(name, value) for name, value in given.items()}
    kept, missing = _without_paths(shown)
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), missing


def _as_public(name: str, value: Any) -> Any:
    if name in _FILES:
        return _each(value, _public)
    if name == "constraints" and isinstance(value, list):
        return [
            {k: _each(v, _public) if k == "data" else v for k, v in one.items()}
            if isinstance(one, Mapping)
            else one
            for one in value
        ]
    return value


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(part, change) for key, part in value.items()}
    return [_each(part, change) for part in value] if isinstance(value, list | tuple) else value


def _public(text: str) -> str:
    """An id of the hub as it is, with what follows a colon; of anything else its last part."""
    name, equals, source = text.rpartition("=")
    id_, _, _ = source.partition(":")
    # what looks like an id may be a folder
    known = hub_id(id_) and not Path(source).exists() and not Path(id_).exists()
    return f"{name}{equals}{source if known else Path(source).name}"


def _without_paths(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options that may be shown, and the names of those that hold a path of the machine."""
    wanted = {name: value for name, value in options.items() if name not in _PRIVATE}
    missing = [name for name, value in wanted.items() if _holds_a_path(value)]
    return {name: value for name, value in wanted.items() if name not in missing}, missing


def _holds_a_path(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_LOCAL.match(value)) or "\\" in value or value.count("/") > 1
    if isinstance(value, Mapping):
        return any(map(_holds_a_path, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_a_path, value))
    return False


# A run made in Python


def _script(run: Run, base: str, datasets: tuple[str, ...]) -> tuple[str, list[str]]:
    """A script that makes the run from files, and the names of what had to be left out."""
    options, missing = _without_paths(chosen_options(run.facts))
    adapters = run.facts.get("adapter") or {}
    lines = ["from datasets import load_dataset"]
    if adapters:
        lines.append("from peft import get_peft_config")
    lines += ["", "from counterpoint import CPOConfig, CPOTrainer", ""]
    named = {"output_dir": "out", **options}
    lines += ["args = CPOConfig(", *(f"    {k}={v!r}," for k, v in named.items()), ")"]
    lines += ["trainer = CPOTrainer("]
    model = hub_id(base) or Path(base).name or MADE_IN_MEMORY
    lines += [f"    model={model!r},", "    args=args,"]
    lines += [f"    {name}={rows}," for name, rows in _sets(run, datasets)]
    for settings in list(adapters.values())[:1]:
        whole = {"task_type": "CAUSAL_LM", **settings}
        parts = (f"            {k!r}: {v!r}," for k, v in whole.items())
        lines += ["    peft_config=get_peft_config(", "        {", *parts, "        }", "    ),"]
    lines += [")", "trainer.train()"]
    return "\n".join(lines) + "\n", missing


def _sets(run: Run, datasets: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The trainer's arguments that are sets of rows, each as an expression."""
    data: Mapping[str, Any] = run.facts.get("data") or {}
    train = f"load_dataset({datasets[0]!r}, split='train')" if datasets else _rows(ROWS)
    yield "train_dataset", train
    named = {name.removeprefix("eval "): name for name in data if name.startswith("eval ")}
    if "eval" in data:
        yield "eval_dataset", _rows("EVAL.jsonl")
    elif named:
        yield "eval_dataset", _dict(named)
    held = {one.get("name") for one in run.facts.get("constraints") or () if isinstance(one, dict)}
    own = [name for name in data if name.partition("/")[0] in held]
    if own:
        yield "constraint_datasets", _dict({name: name for name in own})


def _dict(files: Mapping[str, str]) -> str:
    parts = (
        f"{name!r}: {_rows(re.sub(r'[^A-Za-z0-9_.-]+', '-', file) + '.jsonl')}"
        for name, file in files.items()
    )
    return f"{{{', '.join(parts)}}}"


def _rows(file: str) -> str:
    return f"load_dataset('json', data_files={file!r}, split='train')"


def _handed_over(base: str, datasets: tuple[str, ...]) -> str:
    """What a script cannot say of objects."""
    unknown = [] if datasets else ["the rows came as objects, and the files stand for them"]
    if not base:
        unknown.append(f"the model was made in memory, and {MADE_IN_MEMORY} stands for it")
    unknown.append("a tokenizer, callbacks, metrics or an optimizer of its own are not told")
    text = "; ".join(unknown)
    return f"{text[0].upper()}{text[1:]}."
