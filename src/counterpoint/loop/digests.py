"""What goes into a stage, known again by its content: files, models, data sets, code of scorers.

A model in a folder is known by the files that transformers reads of it, and an adapter by its
base as well. What is no file here, as a hub id, is known by its name alone: pin its ``revision``.

Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from counterpoint.runlog import RUN_FILE

_MODEL_FILES = (".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".py")
_OF_A_RUN = (RUN_FILE, "trainer_state.json", "training_args.bin", "training_args.json")
"""Files of a run that say when and where it was; its weights do not depend on them."""

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_BLOCK = 2**22

_known: dict[tuple[str, int, int], str] = {}
"""Digests that this process has found, by path, size and time: a model is read only once."""


def source_digest(source: str) -> str:
    """The digest of what a source holds, or its name where it is nothing here.

    Args:
        source: a file, a folder, a hub id, or ``module:function``.
    """
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return _file(path)
        if path.is_dir():
            return _folder(path)
    except (OSError, ValueError, RuntimeError):  # no name of a file, as a long system prompt is not
        return source
    found = _FUNCTION.fullmatch(source)
    code = _code(found[1]) if found else None
    return _file(code) if code is not None else source


def sources_in(values: Iterable[object]) -> Iterator[str]:
    """What values of options name: each text that is a file, a folder or a function here.

    Args:
        values: of options; lists and mappings are looked into.
    """
    for value in values:
        if isinstance(value, dict):
            yield from sources_in(value.values())
        elif isinstance(value, list):
            yield from sources_in(value)
        elif isinstance(value, str):
            # NAME=FILE, and weights or counts behind a file
            parts = (value, value.partition("=")[2], re.split(r"[=#]", value)[0])
            yield from dict.fromkeys(one for one in parts if one and source_digest(one) != one)


def _file(path: Path) -> str:
    facts = path.stat()
    key = str(path.resolve()), facts.st_size, facts.st_mtime_ns
    if key not in _known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        _known[key] = digest.hexdigest()
    return _known[key]


def _folder(folder: Path) -> str:
    config = next((n for n in ("adapter_config.json", "config.json") if (folder / n).is_file()), "")
    files = _of_model(folder) if config else sorted(folder.rglob("*"))
    digest = hashlib.sha256()
    for path in files:
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder)} {_file(path)}\n".encode())
    if config.startswith("adapter"):
        digest.update(_base(folder / config).encode())
    return digest.hexdigest()


def _of_model(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _MODEL_FILES and path.name not in _OF_A_RUN
    ]


def _base(config: Path) -> str:
    """Of the model that an adapter lies on."""
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return source_digest(base) if isinstance(base, str) and base != str(config.parent) else ""


def _code(module: str) -> Path | None:
    """The file of a module that is in the working folder or on Python's path; not imported."""
    where: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in module.split("."):
        if not where:
            return None
        spec = PathFinder.find_spec(part, where)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None
