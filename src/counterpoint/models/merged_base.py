"""The folder ``base`` of a run that trains a new adapter on top of an old one.

The old adapter is merged into its base, and the new one lies on the result. A saved adapter names
its base, and plain PEFT loads whatever that name leads to; so the merged model stays in the run's
folder for as long as its adapter does, with a record of what it was made of.

Not here: how an adapter is merged (``merging``), when a run writes the folder
(``cli.new_adapter``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint.errors import ModelError
from counterpoint.model_seams import MERGED_FROM, merged_from
from counterpoint.models.adapters import base_of
from counterpoint.models.described import ADAPTER_FILE, read_object
from counterpoint.models.gguf_files import dequantized_from
from counterpoint.models.merging import Merged
from counterpoint.strict import strict_json

RECORD = "merged_from.json"
"""Name of the record in a merged base's folder."""

_FACTS = ("base", "adapters", "moved", "dtype")


def write_record(folder: Path, source: str, merged: Merged) -> None:
    """Write what a merged base was made of, beside its weights.

    Args:
        folder: of the merged model.
        source: the adapter's folder.
        merged: what became of it.
    """
    below = read_record(Path(base_of(source)).expanduser())
    content = {
        # an adapter may lie on what others were merged into
        "base": below.get("base", merged.base),
        "adapters": [*below.get("adapters", ()), source],
        "files": _digests(Path(source).expanduser()),
        "moved": merged.moved,
        "dtype": merged.dtype,
    }
    (folder / RECORD).write_text(f"{strict_json(content, indent=2)}\n", encoding="utf-8")


def read_record(folder: Path) -> Mapping[str, Any]:
    """The record of a merged base; empty for any other folder.

    Args:
        folder: need not exist.
    """
    found = read_object(folder / RECORD)
    names, base = found.get("adapters"), found.get("base")
    whole = isinstance(base, str) and isinstance(names, list) and all(map(_is_text, names))
    return found if whole else {}


def refuse_another(folder: Path, source: str) -> None:
    """Refuse an adapter that is no longer the one a base was made of.

    Args:
        folder: of the merged base.
        source: the adapter's folder, which is there.

    Raises:
        ModelError: CP340.
    """
    if read_record(folder).get("files") != _digests(Path(source).expanduser()):
        raise ModelError(
            "CP340",
            f"{source} has changed since it was merged into {folder}, on which this run's new "
            "adapter lies. Put the old files back to resume, or train the changed adapter into "
            "another output_dir.",
        )


def called_after(model: Any, folder: Path, found: Mapping[str, Any]) -> None:
    """Let a model say where its files will lie, and what it was merged from.

    Args:
        model: loaded, without an adapter.
        folder: that a saved adapter names as its base.
        found: its record.
    """
    model.config.name_or_path = model.name_or_path = str(folder)
    setattr(model, MERGED_FROM, {name: found[name] for name in _FACTS if name in found})


def origin_facts(model: Any) -> dict[str, Any]:
    """What ``run.json`` says of where a model's weights came from beside their name.

    Args:
        model: plain or PEFT-wrapped.
    """
    return {"dequantized": dequantized_from(model), "merged": dict(merged_from(model)) or None}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that an adapter is read from."""
    found = {}
    for path in sorted([folder / ADAPTER_FILE, *folder.glob("adapter_model*")]):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
