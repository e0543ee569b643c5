"""The run directory: what a run writes about itself, and where.

    run.json         what was trained: objective, options, data counts, versions; written at the
                     start, whole or not at all
    metrics.jsonl    every log line
    alarms.jsonl     every alarm that was raised
    movement.jsonl   how far each parameter has moved, now and then
    samples.jsonl    texts that the model wrote

The streams are appended to as things happen, one JSON object a line, and can be read meanwhile.
Not here: weights and checkpoints (transformers writes them into the same folder), and anything
secret: options with "token" or "key" in their name are left out.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import SetupError

RUN_FILE = "run.json"
METRICS, ALARMS, MOVEMENT, SAMPLES = STREAMS = ("metrics", "alarms", "movement", "samples")
"""The streams of a run; each is a file of that name, ending in .jsonl."""

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


def stream_file(folder: str | Path, stream: str) -> Path:
    """Where a stream of a run lies.

    Args:
        folder: the run directory.
        stream: one of ``STREAMS``.
    """
    return Path(folder) / f"{stream}.jsonl"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that goes wrong while a run goes on.

    Args:
        code: a key of the doctor's table, CW4xx.
        step: optimizer step at which it was seen.
        since: optimizer step at which it began, <= step.
        seen: what was seen, with values.
        fix: a line of configuration to paste; "" where there is none.
    """

    code: str
    step: int
    since: int
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory, as far as it is written.

    Args:
        folder: where it was read.
        facts: of ``run.json``; empty where there is none.
        metrics: log lines, in the order they were written, each with its "step" and "time".
        alarms: what was raised.
        movement: looks at the parameters.
        samples: texts that the model wrote.
    """

    folder: Path
    facts: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    alarms: tuple[Mapping[str, Any], ...]
    movement: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]


def read_run(folder: str | Path) -> Run:
    """Read a run directory, also while it is written.

    Args:
        folder: the run directory.

    Raises:
        SetupError: CP507 where there is no run, or its ``run.json`` cannot be read.
    """
    path = Path(folder)
    try:
        facts = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(
            "CP507", f"{path} holds no run: its {RUN_FILE} cannot be read ({error})."
        ) from error
    streams = {stream: tuple(_lines(stream_file(path, stream))) for stream in STREAMS}
    return Run(path, facts, **streams)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The whole lines of a stream; one that is being written is left for the next time."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)


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

    def append(self, stream: str, entry: Mapping[str, Any] | Alarm) -> None:
        """Append one line to a stream, with the "time" in seconds since 1970.

        Args:
            stream: one of ``STREAMS``.
            entry: JSON-ready.
        """
        content = asdict(entry) if isinstance(entry, Alarm) else _without_secrets(entry)
        line = json.dumps({**content, "time": round(time.time(), 3)}, default=str)
        self.folder.mkdir(parents=True, exist_ok=True)
        with stream_file(self.folder, stream).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def lengths(self) -> dict[str, int]:
        """Bytes of each stream as it stands, brought to the disk; what a checkpoint remembers."""
        found = dict.fromkeys(STREAMS, 0)
        for stream in STREAMS:
            path = stream_file(self.folder, stream)
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    found[stream] = os.fstat(file.fileno()).st_size
        return found

    def resumed(self, step: int, lengths: Mapping[str, int]) -> None:
        """A run goes on after a step: what was written since is written again, so take it away.

        Args:
            step: the last one that counts.
            lengths: of the streams when it was done, from ``lengths``; of a stream that is not
                in it, lines of later steps go.
        """
        for stream in STREAMS:
            path = stream_file(self.folder, stream)
            if not path.is_file():
                continue
            if stream in lengths:
                # never longer: a file that lost its end keeps what there is
                os.truncate(path, min(lengths[stream], path.stat().st_size))
                continue
            kept = [json.dumps(line) for line in _lines(path) if line.get("step", 0) <= step]
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            part.replace(path)


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
