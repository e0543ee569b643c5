"""What ``counterpoint loop`` takes: the entries of its file, and what each stage may be given.

A file has a mapping for each stage, whose entries are options of that stage's command. They are
read as that command reads its flags, so that a mistake is said with its line.

Not here: which options each command has (``command``, ``table``), the stages (``loop``).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.options.coerce import coerce
from counterpoint.options.declared import option
from counterpoint.options.given import Setting
from counterpoint.options.limits import refuse_below, refuse_unless_given
from counterpoint.options.sample_options import OF_ENDPOINT, OF_LOADING
from counterpoint.strict import strict_json

STAGES = ("sample", "score", "pairs", "train", "evaluate")
"""Commands of which a loop's file may have a mapping."""

FIRST_SAMPLE = "first_sample"
"""Another such mapping: what is sampled otherwise where a round samples from the first model."""

FIRST, PREVIOUS = "first", "previous"

_OF_SAMPLE = ("prompts", "out", "seed", "shard", "overwrite")
OF_THE_LOOP: Mapping[str, tuple[str, ...]] = {
    "sample": _OF_SAMPLE,
    FIRST_SAMPLE: _OF_SAMPLE,
    "score": ("out", "overwrite", "max_rows", "json"),
    "pairs": ("out", "overwrite", "json"),
    "train": (
        *("model", "dataset", "datasets", "split", "output_dir", "overwrite_output_dir"),
        *("resume", "resume_from_checkpoint", "seed"),
    ),
    "evaluate": ("base", "out", "overwrite", "json"),
}
"""Options that the loop gives to each stage itself."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """The command's own flags; every field's help is its meaning."""

    out: str | None = option(
        None, "Folder of the loop. null: runs/ and the name of its file, as in runs/loop."
    )
    dry_run: bool = option(False, "Say which stages would be done, and why; do none.")


@dataclass(frozen=True, slots=True)
class LoopRecipe:
    """The entries of a loop's file beside its stages; every field's help is its meaning."""

    model: str | None = option(
        None, "Required. The first model: a hub id, a folder with a model or an adapter."
    )
    prompts: list[str] = option([], "Required. Prompts to sample to, as counterpoint sample reads.")
    rounds: int = option(1, "Rounds, >= 1. More of them may be asked for later.")
    seed: int = option(0, "Of sampling and training, >= 0; each round has seeds of its own of it.")
    sample_from: str = option(
        PREVIOUS,
        "Model that a round's candidates are of: that of the round before, or the first one.",
        (PREVIOUS, FIRST),
    )
    train_from: str = option(
        PREVIOUS,
        "Model that a round's training begins with: that of the round before, or the first one.",
        (PREVIOUS, FIRST),
    )
    accumulate: bool = option(False, "Train on the pairs of all rounds so far, not of the last.")
    beside: list[str] = option([], "Further models that every round samples from.")
    train_with: str | None = option(
        None,
        "What starts the processes of training, as in torchrun --nproc_per_node 8; null: one "
        "process.",
    )
    held_out: list[str] = option(
        [],
        "Prompts that no round trains on. The first model and that of each round answer them as "
        "they are sampled and scored; the report compares each round with the one before.",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_unless_given({"model": self.model, "prompts": self.prompts}, " in the loop's file")
        refuse_below(self, rounds=1, seed=0)
        self.launcher()

    def launcher(self) -> tuple[str, ...]:
        """The words of ``train_with``; none for one process.

        Raises:
            ConfigError: CP103 for words that no shell would read.
        """
        try:
            return tuple(shlex.split(self.train_with or ""))
        except ValueError as error:
            raise ConfigError("CP103", f"train_with={self.train_with!r}: {error}.") from error


def merged_first(sample: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which the first model is sampled from.

    Args:
        sample: those of every round; such as mean nothing to the first one's engine are left out.
        own: those of ``first_sample``.
    """
    engine = own.get("engine", sample.get("engine"))
    left = (*OF_LOADING, "batch") if engine == "endpoint" else OF_ENDPOINT
    return {**{name: one for name, one in sample.items() if name not in left}, **own}


Reading = Callable[[str], tuple[Any, tuple[str, ...]] | None]
"""Type and choices of an option by its name; None for a name that is no option."""


def read_stage(
    stage: str, settings: Sequence[Setting], reads: Reading, names: Collection[str]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """The options of one stage, each of its own type.

    Args:
        stage: its command.
        settings: entries of its mapping.
        reads: the options of the command.
        names: of these, for the one that was probably meant.

    Returns:
        Values by name, and all mistakes: CP101 to CP104, each naming its line.
    """
    values, wrong = {}, list[ConfigError]()
    for one in settings:
        found = None if one.name in OF_THE_LOOP[stage] else reads(one.name)
        try:
            if one.name in OF_THE_LOOP[stage]:
                raise ConfigError("CP104", f"{one.where} is the loop's to say. Leave it out.")
            if found is None:
                raise ConfigError("CP101", _no_option(stage, one, names))
            values[one.name] = coerce(one, *found)
        except ConfigError as error:
            wrong.append(error)
    return values, wrong


def _no_option(stage: str, one: Setting, names: Collection[str]) -> str:
    near = get_close_matches(one.name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see counterpoint {stage} --help."
    return f"{one.where} is no option of counterpoint {stage}; {hint}"


def located(error: ConfigError, settings: Sequence[Setting], stage: str) -> ConfigError:
    """An error of options together, with the line of the first that its message names.

    Args:
        error: of a command's own check.
        settings: entries of the stage's mapping.
        stage: its command.
    """
    spelled = error.message.replace("-", "_")
    places = {spelled.find(one.name): one.where for one in settings if one.name in spelled}
    where = places[min(places)] if places else stage
    return type(error)(error.code, f"{where}: {error.message}")


def words_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Values as the words of a command line.

    Args:
        values: by name, each of its own type.
    """
    return tuple(f"--{name}={_word(value)}" for name, value in values.items())


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return strict_json(value, ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)
