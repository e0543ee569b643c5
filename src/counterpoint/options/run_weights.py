"""How the weights under an adapter were held in the run that trained it, as options of ``train``.

An adapter is saved without them. Over weights of another precision, quantised or not, or of another
revision, it is another model than the one that was trained.

Not here: loading (``models.adapters``), which warns where they are held otherwise (CW507).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.options.run_options import DTYPES
from counterpoint.runlog import REQUEST_FILE, RUN_FILE, read_run

QUANTISING = ("load_in_4bit", "load_in_8bit")
SAYS_QUANTISED = (*QUANTISING, "model_init_kwargs")
"""Options that quantise, and those of ``holding_of`` that say how weights are quantised."""


def run_of(source: str) -> Path | None:
    """The folder of the run that a model is of; None where it is of none.

    Args:
        source: hub id or folder: of a run, or of a checkpoint in one.
    """
    folder = Path(source).expanduser()
    for place in (folder, folder.parent) if folder.is_dir() else ():
        is_its_run = place == folder or folder.name.startswith("checkpoint-")
        if is_its_run and (place / RUN_FILE).is_file():
            return place
    return None


def holding_of(source: str) -> dict[str, Any]:
    """The options by which a run loaded what its adapter lies on; empty for any other model.

    Of ``model_init_kwargs`` no more is taken than what says which weights, and how they are held:
    the rest may be of the machine that trained.

    Args:
        source: hub id or folder.

    Raises:
        SetupError: CP507 for a ``run.json`` that cannot be read.
    """
    # slow to import, as the flags of the command are not
    from counterpoint.models.adapters import base_of, is_adapter

    folder = run_of(source)
    if folder is None or not is_adapter(source):
        return {}
    options = read_run(folder, ()).facts.get("options", {})
    found: dict[str, Any] = {name: True for name in QUANTISING if options.get(name) is True}
    words = options.get("model_init_kwargs")
    words = words if isinstance(words, Mapping) else {}
    said = {**words, **_asked(folder)}
    dtype = str(said.get("dtype") or said.get("torch_dtype") or "").removeprefix("torch.")
    if dtype in DTYPES:
        found["dtype"] = dtype
    if isinstance(said.get("revision"), str) and not Path(base_of(source)).expanduser().is_dir():
        found["revision"] = said["revision"]
    if isinstance(words.get("quantization_config"), Mapping):
        found["model_init_kwargs"] = {"quantization_config": dict(words["quantization_config"])}
    return found


def began_with(source: str) -> str | None:
    """The name of the model that the run of an adapter began with; None where nothing says it.

    Args:
        source: hub id or folder.
    """
    folder = run_of(source)
    name = None if folder is None else read_run(folder, ()).facts.get("model")
    return name if isinstance(name, str) else None


def began_from(source: str, model: str) -> bool:
    """Whether the run of a model began with another one, by whatever name that is called.

    Args:
        source: hub id or folder of the model.
        model: hub id, folder or file of the other.
    """
    folder = run_of(source)
    if folder is None:
        return False
    named = (began_with(source), _asked(folder).get("model"))
    return any(one == model or _is_same_place(one, model) for one in named if one)


def _is_same_place(one: str, other: str) -> bool:
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def initial_policy_of(source: str) -> str | None:
    """The initial policy of the run that a model is of, as ``reference`` names it; None for none.

    Args:
        source: hub id or folder.
    """
    from counterpoint.models.adapters import base_of, is_adapter

    folder = run_of(source)
    asked = {} if folder is None else _asked(folder)
    if folder is not None and is_adapter(source) and read_run(folder, ()).facts.get("merged"):
        return base_of(source)  # an old adapter and its base, as the run keeps them
    if folder is None or asked.get("from_scratch", "").lower() == "true":
        return None
    # an adapter that was trained on is where the run began, and not the base that it lies on
    name = asked.get("model") or began_with(source)
    if not name or Path(name).expanduser().is_dir() or "revision" not in asked:
        return name or None
    return f"{name}@{asked['revision']}"


def _asked(folder: Path) -> dict[str, Any]:
    """What a run of the command was asked for beside the trainer's own options."""
    from counterpoint.options.yaml_file import read_config

    try:
        settings = read_config(str(folder / REQUEST_FILE))
    except ConfigError:  # a run of a script has no such file
        return {}
    return {
        one.name: one.given.text
        for one in settings
        if one.name in ("model", "from_scratch", "dtype", "revision") and hasattr(one.given, "text")
    }
