"""From a command line to ``RunOptions`` and ``CPOConfig``: file, then flags over it.

Not here: how a file or a flag is read (``yaml_file``, ``arguments``), what a type accepts
(``coerce``) and which values make sense together (``RunOptions``, ``CPOConfig``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.console.manners import has_terminal
from counterpoint.constraints import read_constraints
from counterpoint.data.listed import read_listed
from counterpoint.data.options import OF_A_ROW, OF_THE_MACHINE
from counterpoint.errors import ConfigError, CounterpointError, SetupError
from counterpoint.masking import Mask, keep_secrets
from counterpoint.old_options import modern, warn_of_old
from counterpoint.options.arguments import take
from counterpoint.options.coerce import coerce
from counterpoint.options.given import SECRET, Scalar, Setting
from counterpoint.options.run_options import RunOptions
from counterpoint.options.table import RUN, options, reads, reads_as, refuse_unknown
from counterpoint.options.yaml_file import read_config

OF_THE_DATA = (
    "output_dir",
    "resume_from_checkpoint",
    *OF_A_ROW.values(),
    *OF_THE_MACHINE.values(),
    "trust_remote_code",
    "allow_pickle",
    "load_in_4bit",
    "load_in_8bit",
    "model_init_kwargs",
    "use_cpu",
    "max_steps",
)
"""Options that decide what is loaded and read, whatever is then computed with it."""

RUNS = "runs"
"""Folder of the runs that were given none."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a command line asks for, read and checked.

    Args:
        run: model, data and adapter.
        config: everything that the trainer takes.
        given: the options given by file or flag and their values, without secrets; enough to
            ask for the same again.
        words: of the command line that asked for it, without secrets.
    """

    run: RunOptions
    config: CPOConfig
    given: Mapping[str, Any]
    words: tuple[str, ...] = ()


def read_request(argv: list[str]) -> Request:
    """Read what follows ``counterpoint train``.

    Args:
        argv: the words of the command line.

    Raises:
        ConfigError: CP101 to CP107, naming flag or line.
        SetupError: CP502 where an option needs a package that is not installed.
    """
    return replace(request_of(read_values(argv)), words=tuple(Mask().words(argv)))


def read_what_can_be(argv: list[str]) -> Request | None:
    """The same where options contradict each other: model, data and ``OF_THE_DATA`` alone.

    Args:
        argv: the words of the command line.

    Returns:
        None where not even these can be meant.
    """
    try:
        values = read_values(argv)
        table = options()
        kept = {k: v for k, v in values.items() if table[k].group == RUN or k in OF_THE_DATA}
        return request_of(kept)
    except CounterpointError:
        return None


def read_values(argv: list[str]) -> dict[str, Any]:
    """The options given by file and flags, each as its own type; flags override the file.

    Args:
        argv: the words of the command line.

    Raises:
        ConfigError: CP101, CP102, CP103 or CP106, naming flag or line.
    """
    config, flags = parse(argv)
    in_file = read_config(config) if config else []
    refuse_unknown(in_file)
    # apart: a flag overrides the file by whichever of its names either says it
    return _by_todays_names(in_file) | _by_todays_names(flags.values())


def parse(argv: Sequence[str]) -> tuple[str | None, dict[str, Setting]]:
    """Split a command line into the path of its configuration file, if any, and its flags.

    Args:
        argv: the words of the command line.

    Raises:
        ConfigError: CP101 for an unknown flag or a stray word, CP103 for a missing value.
    """
    files: list[str] = []

    def stray(word: str) -> None:
        written = word.partition("=")[0]
        if word.startswith("--") and len(word) > 2:
            refuse_unknown([Setting(written[2:].replace("-", "_"), Scalar(""), written)])
        if files or word.startswith("-"):
            raise ConfigError(
                "CP101",
                f"{word!r} belongs to no flag; write counterpoint train CONFIG.yaml --name value.",
            )
        files.append(word)

    flags = take(argv, reads, stray, waits=lambda: not files)
    return (files[0] if files else None), flags


def _by_todays_names(settings: Iterable[Setting]) -> dict[str, Any]:
    every = list(settings)
    given = {one.name: coerce(one, *reads_as(one.name)) for one in every}
    for one in every:
        check_items(one, given[one.name])
    values, said = modern(given, options(), where={one.name: one.where for one in every})
    warn_of_old(said)
    return values


_ITEMS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"constraints": lambda one: read_constraints([one]), "datasets": read_listed}
)
"""What reads an item of an option that is a list of mappings."""


def check_items(setting: Setting, given: Any) -> None:
    """Refuse an item where its line is known; the run's options know only what it says.

    Args:
        setting: an option as it was written; one that is no list of mappings passes.
        given: its value, of its own type.

    Raises:
        ConfigError: the item's own code, naming its line.
    """
    if setting.name not in _ITEMS or not isinstance(given, list):
        return
    places = setting.items or [setting.where] * len(given)
    for place, one in zip(places, given, strict=True):
        try:
            _ITEMS[setting.name](one)
        except ConfigError as error:
            raise ConfigError(error.code, f"{place}: {error.message}") from error


def request_of(values: Mapping[str, Any]) -> Request:
    """The run that values ask for, checked.

    Args:
        values: options by name, each of its own type.

    Raises:
        ConfigError: CP102 to CP107.
        SetupError: CP502 where an option needs a package that is not installed.
    """
    keep_secrets(values)
    given = {name: value for name, value in values.items() if name not in SECRET}
    table = options()
    run = RunOptions(**{name: v for name, v in values.items() if table[name].group == RUN})
    rest = {name: v for name, v in values.items() if table[name].group != RUN}
    if run.resume is not None:
        if rest.get("resume_from_checkpoint") is not None:
            raise ConfigError(
                "CP104", "resume and resume_from_checkpoint say the same; give one of them."
            )
        rest["resume_from_checkpoint"] = run.resume
    if rest.get("output_dir") is None:
        rest["output_dir"] = _next_folder(run, rest)
    if rest.get("disable_tqdm") is None:
        # transformers would decide by its own log level, which says nothing of a terminal
        rest["disable_tqdm"] = not has_terminal()
    rest.setdefault("log_level_replica", "passive")  # as quiet as the first process
    return Request(run=run, config=build_config(rest), given=given)


def build_config(values: dict[str, Any]) -> CPOConfig:
    """The trainer's options.

    Args:
        values: by name, each of its own type; those left out take their defaults.

    Raises:
        ConfigError: CP102 to CP105, also where transformers refuses them.
        SetupError: CP502 where an option needs a package that is not installed.
    """
    try:
        return CPOConfig(**values)
    except CounterpointError:
        raise
    except (ValueError, TypeError, OverflowError, NotImplementedError, OSError) as error:
        raise ConfigError("CP104", f"transformers refuses these options: {error}") from error
    except ImportError as error:
        raise SetupError("CP502", f"an option needs a package: {error}") from error


def _next_folder(run: RunOptions, values: Mapping[str, Any]) -> str:
    """``runs/<model>-<loss>``, with a number where that is taken."""
    missing = "output_dir is missing"
    if values.get("resume_from_checkpoint"):
        raise ConfigError("CP107", f"{missing}: a run that resumes needs the folder it was in.")
    if ranks.launched() > 1:
        raise ConfigError("CP107", f"{missing}: several processes must agree on one folder.")
    model = re.sub(r"[^\w.-]+", "-", Path(str(run.model)).name) or "model"
    plain = Path(RUNS) / f"{model}-{values.get('loss_type', CPOConfig.loss_type)}"
    folder, number = plain, 1
    while folder.exists():
        number += 1
        folder = plain.with_name(f"{plain.name}-{number}")
    return str(folder)
