"""The table of every option of ``counterpoint train``: its type, default, help and group.

It is read off the fields of ``RunOptions`` and ``CPOConfig``, so an option exists once. Building
it imports transformers, which takes seconds; ``counterpoint --help`` must not.

Not here: values (``coerce``), and what transformers' own options mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.objectives import LOSSES
from counterpoint.old_options import TAKEN, why_no_option
from counterpoint.options.declared import Option, declared
from counterpoint.options.given import Setting
from counterpoint.options.run_options import RunOptions

RUN = "Model, data and adapter"
COUNTERPOINT = "Objective and training"
TRANSFORMERS = "transformers.TrainingArguments"
GROUPS: Mapping[str, str] = MappingProxyType(
    {
        RUN: "What to train on what.",
        COUNTERPOINT: "CPOConfig: the names and defaults of TRL's, and what Counterpoint adds.",
        TRANSFORMERS: "All of transformers' options; those that could only mislead are refused.",
    }
)

OF_THE_COMMAND: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": "Folder of the run: model, log, checkpoints. null: runs/<model>-<loss_type>, "
        "numbered where that is taken.",
        "resume_from_checkpoint": "Folder of a checkpoint to resume from, or latest: the newest "
        "good one in output_dir, or auto, as resume.",
        "hub_token": "Token of the hub; kept out of everything that is written.",
        "disable_tqdm": "No progress bar; null: one where there is a terminal to show it.",
    }
)
"""Options of transformers' that mean more in the command than their own help says."""


def options() -> Mapping[str, Option]:
    """Every option by name: the run's, then Counterpoint's own, then transformers'."""
    # what is added to a table from outside is a choice from then on
    return _table(tuple(LOSSES), tuple(LAYOUTS))


@cache
def _table(losses: tuple[str, ...], layouts: tuple[str, ...]) -> Mapping[str, Option]:
    parts = [part for part in CPOConfig.__mro__ if part.__module__.startswith("counterpoint.")]
    own = {name for part in parts for name in inspect.get_annotations(part)}
    found = declared(RunOptions, group=RUN)
    of_config = declared(CPOConfig)
    for group, mine in ((COUNTERPOINT, True), (TRANSFORMERS, False)):
        for name, one in of_config.items():
            if (name in own) is mine:
                found[name] = replace(one, group=group, help=OF_THE_COMMAND.get(name, one.help))
    return MappingProxyType(found)


def reads_as(name: str) -> tuple[Any, tuple[str, ...]]:
    """Type and choices of an option's value; of an earlier release's, those of what it is today.

    Args:
        name: of an option, or one of ``TAKEN``.
    """
    if name in options():
        return options()[name].hint, options()[name].choices
    one = TAKEN[name]
    if one.hint is not None:
        return one.hint, ()
    return options()[one.to].hint, options()[one.to].choices


def reads(name: str) -> tuple[Any, tuple[str, ...]] | None:
    """The same; None for a name that is no option."""
    return reads_as(name) if is_known(name) else None


def is_known(name: str) -> bool:
    """Whether a name is an option, or one of an earlier release that is taken."""
    return name in options() or name in TAKEN


def refuse_unknown(settings: Iterable[Setting]) -> None:
    """Raise CP101 where a setting names no option, with what was probably meant."""
    unknown = [setting for setting in settings if not is_known(setting.name)]
    if unknown:
        raise ConfigError("CP101", " ".join(_name_unknown(setting) for setting in unknown))


def _name_unknown(setting: Setting) -> str:
    return f"{setting.where} is no option{why_no_option(setting.name, options())}"
