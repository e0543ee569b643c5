"""Split the words after ``counterpoint train`` into a configuration file and flags.

    --beta 0.1   --beta=0.1   --bf16   --no_bf16   --bf16 false   --dataset a.jsonl b.jsonl

Hyphens and underscores in a name are the same. A flag given twice counts the last time, so that
a script may append to a command; a flag that takes several values adds them up instead.

argparse is not used: it abbreviates names, reads ``-1e-3`` as a flag and ends in its own usage
message instead of a coded error.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from counterpoint.errors import ConfigError
from counterpoint.options.coerce import FALSES, NULLS, TRUES, is_bool, is_list
from counterpoint.options.given import Given, Scalar, Setting
from counterpoint.options.table import is_known, reads_as, refuse_unknown


@dataclass(slots=True)
class Arguments:
    """What the command line said.

    Args:
        config: path of the configuration file, if one was given.
        flags: the flags by option name.
    """

    config: str | None = None
    flags: dict[str, Setting] = field(default_factory=dict)


def parse(argv: list[str]) -> Arguments:
    """Read the words of a command line.

    Args:
        argv: the words after ``counterpoint train``.

    Raises:
        ConfigError: CP101 for an unknown flag or a stray word, CP103 for a missing value.
    """
    arguments = Arguments()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            _add(arguments, _read_flag(word, rest, arguments.config is not None))
        elif arguments.config is None and not word.startswith("-"):
            arguments.config = word
        else:
            raise ConfigError(
                "CP101",
                f"{word!r} belongs to no flag; write counterpoint train CONFIG.yaml --name value.",
            )
    return arguments


def _add(arguments: Arguments, setting: Setting) -> None:
    before = arguments.flags.get(setting.name)
    if before and is_list(reads_as(setting.name)[0]):
        joined = [*_as_list(before.given), *_as_list(setting.given)]
        setting = Setting(setting.name, joined, setting.where)
    arguments.flags[setting.name] = setting


def _read_flag(word: str, rest: list[str], has_config: bool) -> Setting:
    written, equals, text = word.partition("=")
    name, negated = _resolve(written)
    hint, _ = reads_as(name)
    if negated:
        if equals:
            raise ConfigError("CP103", f"{word} should be {written}, without a value.")
        return Setting(name, Scalar("false"), written)
    if equals:
        return Setting(name, Scalar(text), written)
    if is_list(hint):
        given: Given = _take_all(rest)
    elif is_bool(hint):
        given = _take_bool(rest, has_config, free_text=str in getattr(hint, "__args__", ()))
    else:
        given = _take_one(rest)
    if given == []:
        raise ConfigError("CP103", f"{written} needs a value, as in {written} VALUE.")
    return Setting(name, given, written)


def _resolve(written: str) -> tuple[str, bool]:
    """Option name of a flag, and whether it was written as ``--no_name``."""
    name = written[2:].replace("-", "_")
    if is_known(name):
        return name, False
    positive = name.removeprefix("no_")
    if positive != name and is_known(positive) and is_bool(reads_as(positive)[0]):
        return positive, True
    refuse_unknown([Setting(name, Scalar(""), written)])
    raise AssertionError(written)


def _take_all(rest: list[str]) -> Given:
    taken: list[Given] = []
    while rest and not rest[0].startswith("--"):
        taken.append(Scalar(rest.pop(0)))
    return taken[0] if len(taken) == 1 else taken


def _take_one(rest: list[str]) -> Given:
    return Scalar(rest.pop(0)) if rest and not rest[0].startswith("--") else []


def _take_bool(rest: list[str], has_config: bool, free_text: bool) -> Given:
    if not rest or rest[0].startswith("--"):
        return Scalar("true")
    # A word that is no truth value may be the configuration file, if that is still to come.
    if free_text or has_config or rest[0].lower() in TRUES + FALSES + NULLS:
        return Scalar(rest.pop(0))
    return Scalar("true")


def _as_list(given: Given) -> list[Given]:
    return given if isinstance(given, list) else [given]
