"""Which base model an adapter, or a run, began with; and that it is still the same.

A checkpoint says in its fingerprint what its adapter lay on, and a run's folder in its run.json
(``checkpoint.adapted``). What a run began with has a name, too, which a resumed run keeps: another
model of the same shapes, given to resume a full run, is never trained.

Not here: what resuming on another base is (``resumption``), loading (``models.adapters``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from counterpoint.checkpoint.adapted import BASE, another_base, base_identity
from counterpoint.checkpoint.manifest import MANIFEST
from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.runlog import RUN_FILE

UNKNOWN = "CW128"
"""Code of the warning that nothing says what an adapter lay on."""

HELD_OTHERWISE = "CW507"
"""Code of the warning that an adapter lay on weights that were held in another way."""


def base_then(checkpoint: Path, own: Mapping[str, Any]) -> str | None:
    """The name of the model that a checkpoint's run began with; None where nothing says it.

    Args:
        checkpoint: its folder.
        own: the trainer's own part of its state; up to 0.4 without the name.
    """
    name = own["model"] if "model" in own else _json(checkpoint.parent / RUN_FILE).get("model")
    return name if isinstance(name, str) else None


def unknown_base(checkpoint: Path, base: str | None) -> str:
    """The warning that a checkpoint does not say what its adapter lay on."""
    named = f", {base}" if base else ""
    return (
        f"{UNKNOWN} {checkpoint} is of an earlier release, which did not note what the adapter was "
        f"trained on{named}; the base model given is taken for it."
    )


def other_base(then: str | None, now: str) -> str:
    """Which base models two identities are of, as a sentence after a space."""
    return (
        f" The adapter was trained on {then or 'a model made in memory'}, and the weights under it "
        f"now, of {now or 'a model made in memory'}, are others."
    )


def check_base(model: nn.Module, folder: Path) -> None:
    """Refuse an adapter whose base model has changed since it was trained.

    Where the base is held otherwise than then, in another precision or not quantised, its values
    cannot be compared, and that is warned of.

    Args:
        model: the adapter on its base, as loaded.
        folder: of the adapter: a run's, or a checkpoint's; without a record nothing is compared.

    Raises:
        SetupError: CP519 where it is another.
    """
    kept = _json(folder / MANIFEST).get("fingerprint")
    then = kept.get(BASE) if isinstance(kept, dict) else _json(folder / RUN_FILE).get("base")
    if not isinstance(then, str) or _moves_its_base(model):
        return
    now = base_identity(model)
    if another_base(then, now):
        raise SetupError(
            "CP519",
            f"the adapter in {folder} was trained on other weights ({then}) than those that its "
            f"base model has now ({now}), so that it fits them by its shapes alone. Load the base "
            "that it was trained on; base_model_name_or_path in its adapter_config.json names it.",
        )
    if now is not None and then.split("-")[0] != now.split("-")[0]:
        logger().warning(
            "%s the adapter in %s was trained over weights that were held otherwise than those of "
            "its base are now: in another precision, or quantised. What it says is not what it "
            "was trained to say. Load the base as the run did (dtype, load_in_4bit, load_in_8bit).",
            HELD_OTHERWISE,
            folder,
        )


def _moves_its_base(model: nn.Module) -> bool:
    """Whether an adapter of this kind changes what it lies on when it is made (PiSSA and kin)."""
    configs: Any = getattr(model, "peft_config", {})
    ways = {getattr(one, "init_lora_weights", True) for one in configs.values()}
    return any(isinstance(way, str) and way != "gaussian" for way in ways)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
