"""The run directory: what a run writes about itself, and where.

    run.json        what was trained: objective, options, data counts, versions; written at the
                    start, whole or not at all
    metrics.jsonl   one JSON object a line for every log line, appended as it happens

Plain JSON, readable while it is written. Not here: weights and checkpoints (transformers writes
them into the same folder), and anything secret: options with "token" or "key" in their name are
left out.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import SetupError

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft")


def logger() -> logging.Logger:
    """The logger of what a run says to people; shows INFO on stderr unless set up otherwise."""
    log = logging.getLogger("counterpoint")
    if not log.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    if log.level == logging.NOTSET:
        # of several ranks one speaks; all of them warn
        first = os.environ.get("RANK", "0") == "0"
        log.setLevel(logging.INFO if first else logging.WARNING)
    return log


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that could not be written, without creating it.

    Args:
        folder: where the run would write; need not exist.

    Raises:
        SetupError: CP501, naming the part of the path that is in the way.
    """
    path = Path(folder).absolute()
    try:
        existing = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
        if not existing.is_dir():
            raise SetupError("CP501", f"{path} cannot be a folder: {existing} is a file.")
        # asking for permission is not enough: it is granted to root on read-only file systems
        probe = existing / f".counterpoint-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            "CP501",
            f"{path} cannot be written: {error.strerror or error}. Choose another folder.",
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python, Counterpoint and the libraries that compute."""
    found = {"python": platform.python_version(), "counterpoint": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class RunLog:
    """Writes a run's own files; one writer a run, the main process.

    Args:
        folder: the run directory; created with the first file.
    """

    def __init__(self, folder: str | Path) -> None:
        """Nothing is written yet."""
        self.folder = Path(folder)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``run.json`` with the facts, the versions and the command line.

        Args:
            facts: JSON-ready; secrets are left out at any depth.
        """
        content = {
            **_without_secrets(facts),
            "versions": versions(),
            "command": _without_secret_words(sys.argv),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / RUN_FILE
        staged = target.with_suffix(".json.part")
        try:
            staged.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
            staged.replace(target)
        except OSError:
            staged.unlink(missing_ok=True)
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(entry), default=str) + "\n")


def is_secret(name: str) -> bool:
    """Whether the value of an option of this name is nobody's business."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in words for word in ("token", "key", "secret", "password"))


def _without_secret_words(words: list[str]) -> list[str]:
    """A command line, values of secret options masked: ``--hub_token x`` and ``--hub_token=x``."""
    shown: list[str] = []
    hide_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = word.startswith("-") and is_secret(name.lstrip("-"))
        if hide_next and not word.startswith("-"):
            word = "***"
        elif secret and equals:
            word = f"{name}=***"
        hide_next = secret and not equals
        shown.append(word)
    return shown


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_secrets(v) for k, v in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [_without_secrets(v) for v in value]
    return value
