"""Whose file it is, and the settings in it: YAML, a shell command, or Python.

Nothing is executed: no script, no shell, no YAML tag.

Not here: what the settings mean (``of_trl``, ``of_llama_factory``, ``of_axolotl``).
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from counterpoint.errors import ConfigError
from counterpoint.migrate import of_axolotl, of_llama_factory, of_ms_swift
from counterpoint.migrate.of_kto import refuse_kto
from counterpoint.objectives import DEFAULT_LOSS, DEFAULTS_OF_TRL
from counterpoint.options.given import Given, Scalar, Setting
from counterpoint.options.yaml_file import read_option_file

STANDARD = "-"
TRL_MARKS = (
    "model_name_or_path",
    "dataset_name",
    "datasets",
    "loss_type",
    "beta",
    "cpo_alpha",
    "simpo_gamma",
    "use_peft",
    "per_device_train_batch_size",
)
"""Names by which a YAML of TRL is known, where it is nobody else's."""

_CLASSES = "|".join(DEFAULTS_OF_TRL)
_NAMES = _CLASSES.lower()
_COMMAND = re.compile(
    rf"\btrl\s+({_NAMES})\b|(\b|_)({_NAMES})\.py\b|\bswift\s+rlhf\b"
    r"|\b(llamafactory-cli|lmf)\s+train\b|\btrain_bash\.py\b"
)
_SCRIPT = re.compile(
    rf"^\s*(from|import|def|class)\s|\w+\s*=\s*\w*({_CLASSES})Config\(", re.MULTILINE
)
_OF_KTO = re.compile(r"^[^#\n]*?(\btrl\s+kto\b|\bkto\.py\b)", re.MULTILINE)
_ENDS = re.compile(r"[;&|<>()]+")
_COMPUTED = re.compile(r"[$`]")
_SUBSTITUTED = re.compile(r"\$\([^()]*\)|`[^`]*`")
_REDIRECTED = re.compile(r"(?<=\s)\d?>>?&?\s*[^\s;&|]+")


def read_foreign(path: str) -> tuple[str, str]:
    """The text of a file, and its kind.

    Args:
        path: of the file; ``-`` for standard input.

    Returns:
        The text, and "python", "shell" or "yaml".

    Raises:
        ConfigError: CP106 where it cannot be read.
    """
    if path == STANDARD:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError("CP106", f"standard input is not UTF-8: {error}.") from error
    else:
        text = read_option_file(str(Path(path).expanduser()))
    endings = {".py": "python", ".sh": "shell", ".bash": "shell", ".yaml": "yaml", ".yml": "yaml"}
    return text, endings.get(Path(path).suffix.lower()) or _kind_of(text)


def _kind_of(text: str) -> str:
    if _SCRIPT.search(text):
        return "python"
    return "shell" if _COMMAND.search(text) or _OF_KTO.search(text) else "yaml"


def tool_of(settings: list[Setting], path: str) -> str:
    """Whose YAML it is, by the names in it.

    Args:
        settings: of the file.
        path: as messages name it.

    Returns:
        "ms-swift", "LLaMA-Factory", "Axolotl" or "TRL".

    Raises:
        ConfigError: CP106 where it is nobody's, or Counterpoint's own.
    """
    names = {setting.name for setting in settings}
    if names.intersection(of_ms_swift.MARKS):
        return of_ms_swift.TOOL
    if "model" in names:
        raise ConfigError(
            "CP106",
            f"{path} names its model as files of counterpoint train do, so there is nothing to "
            f"translate; counterpoint doctor {path} says what is wrong with it.",
        )
    marks = {
        "LLaMA-Factory": of_llama_factory.MARKS,
        "Axolotl": of_axolotl.MARKS,
        "TRL": TRL_MARKS,
    }
    for tool, known in marks.items():
        if names.intersection(known):
            return tool
    raise ConfigError(
        "CP106",
        f"{path} has no name that a file of {', '.join(marks)} has: neither stage, rl, "
        "model_name_or_path nor loss_type.",
    )


def settings_of_command(text: str, path: str) -> tuple[list[Setting], list[str], str]:
    """The flags of the one command in a shell text that trains, of TRL, ms-swift, LLaMA-Factory.

    Args:
        text: of the file.
        path: of it.

    Returns:
        The flags as settings; those that the shell would compute, with the reason; and the loss of
        a command that names none.

    Raises:
        ConfigError: CP106 where there is no such command, or several; CP102 for one of KTO.
    """
    name = Path(path).name if path != STANDARD else "standard input"
    found = [words for words in _commands(text, name) if _COMMAND.search(" ".join(words))]
    if not found and (of_kto := _OF_KTO.search(text)):
        raise refuse_kto(f"{name}: {of_kto.group(1)}")
    if len(found) != 1:
        raise ConfigError(
            "CP106",
            f"{name} holds {len(found)} commands such as 'trl cpo --...', 'swift rlhf --...' or "
            "'llamafactory-cli train --...'; keep one.",
        )
    words = found[0]
    start = next(n for n in range(len(words)) if _COMMAND.search(" ".join(words[: n + 1])))
    settings, left = _flags(words[start + 1 :], name)
    for launcher in ("accelerate", "torchrun", "deepspeed"):
        if launcher in words[:start]:
            left.append(f"{name}: {launcher}: start several processes with torchrun.")
    called = words[start].removesuffix(".py")
    return (
        settings,
        left,
        next(
            (loss for trl, loss in DEFAULTS_OF_TRL.items() if called.endswith(trl.lower())),
            DEFAULT_LOSS,
        ),
    )


def _commands(text: str, name: str) -> list[list[str]]:
    """The words of the commands on lines that may hold one of TRL's."""
    text = _REDIRECTED.sub(" ", re.sub(r"\\\r?\n", " ", text))
    while _SUBSTITUTED.search(text):
        text = _SUBSTITUTED.sub("$computed", text)
    found: list[list[str]] = []
    for line in filter(_COMMAND.search, text.splitlines()):
        lexer = shlex.shlex(_without_comment(line), posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        lexer.commenters = ""  # within a word it is no comment: id#500
        found.append([])
        try:
            for word in lexer:
                if _ENDS.fullmatch(word):
                    found.append([])
                else:
                    found[-1].append(word)
        except ValueError as error:
            raise ConfigError("CP106", f"{name} is not a shell command: {error}.") from error
    return found


def _without_comment(line: str) -> str:
    """A line up to a word that begins with #, outside of quotes."""
    for mark in re.finditer(r"(?<!\S)#", line):
        before = line[: mark.start()]
        if before.count("'") % 2 == before.count('"') % 2 == 0:
            return before
    return line


def _flags(words: list[str], name: str) -> tuple[list[Setting], list[str]]:
    settings, left = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        written, equals, text = word.partition("=")
        values = [text] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        where = f"{name}: {written}"
        if not written.startswith("--"):
            left.append(f"{where}: it belongs to no flag.")
        elif any(map(_COMPUTED.search, values)):
            left.append(f"{where}: the shell computes it when the command runs.")
        else:
            given: Given = [Scalar(value) for value in values]
            if len(values) < 2:
                given = Scalar(values[0] if values else "true")
            settings.append(Setting(written[2:].replace("-", "_"), given, where))
    return settings, left
