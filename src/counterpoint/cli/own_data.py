"""The rows of a run by the names that its options give, cut and divided as they say.

Every command that reads rows of ``train``'s options reads them here, so that all see the same.

Not here: how a file is opened (``data.sources``), several sets (``data.mixture``), and which rows
are held out (``data.held_out``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from counterpoint.config import CPOConfig
from counterpoint.data.held_out import hold_out
from counterpoint.data.mixture import Mixture, as_mixture, first_rows, open_sets
from counterpoint.data.sources import load, pick_split
from counterpoint.errors import ConfigError, DataError
from counterpoint.log import logger
from counterpoint.options.run_options import RunOptions
from counterpoint.trainer.second_sets import rows_of

EVAL_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)")


class OwnRows(NamedTuple):
    """What a run trains on and what it evaluates on.

    Args:
        trained: raw rows, a ``Mixture`` of them, or None where they could not be had.
        evaluated: raw rows, a dict of named sets, or None.
    """

    trained: Any
    evaluated: Any


def own_rows(run: RunOptions, config: CPOConfig, attempt: Callable[..., Any]) -> OwnRows:
    """The raw rows of a run.

    Args:
        run: names them.
        config: of the run.
        attempt: how to call what may fail; a strict one lets errors pass.

    Raises:
        ConfigError: CP103, CP107 as ``divided_rows`` and ``eval_sets``.
        DataError: CP2xx for what cannot be read.
    """
    found = attempt(divided_rows, run, config) or OwnRows(None, None)
    if run.eval_share is None:
        return OwnRows(found.trained, attempt(eval_sets, run))
    return OwnRows(*found)


def train_rows(run: RunOptions, config: CPOConfig) -> Any:
    """The raw rows to train on; see ``divided_rows``."""
    return divided_rows(run, config).trained


def divided_rows(run: RunOptions, config: CPOConfig) -> OwnRows:
    """The raw rows to train on, and those that ``eval_share`` holds out of them.

    Args:
        run: names them.
        config: of the run.

    Raises:
        ConfigError: CP107 for a stream without ``max_steps``.
        DataError: CP2xx for what cannot be read, CP238 for rows that cannot be divided.
    """
    rows = open_rows(run)
    if not hasattr(rows, "__len__") and config.max_steps <= 0:
        raise ConfigError(
            "CP107", "max_steps is missing: a streamed data set does not say how long it is."
        )
    return _divided(rows, run, config)


def shown_rows(run: RunOptions, config: CPOConfig) -> Any:
    """The rows that are trained on, of a stream of any length, to be looked at."""
    return _divided(open_rows(run), run, config).trained


def open_rows(run: RunOptions) -> Any:
    """The raw rows that a run names, of whatever length, before any are held out.

    Raises:
        DataError: CP2xx for what cannot be read.
    """
    if run.datasets:
        return open_sets(run.listed_sets, most=run.max_rows)
    rows = load(_sources(run.dataset), split=run.dataset_split, streaming=run.streaming)
    return first_rows(pick_split(rows), run.max_rows)


def _divided(rows: Any, run: RunOptions, config: CPOConfig) -> OwnRows:
    if run.eval_share is None:
        return OwnRows(rows, None)
    whole = rows if isinstance(rows, Mixture) else as_mixture(rows, shown_name(run))
    seed = config.seed if config.data_seed is None else config.data_seed
    sides = hold_out(whole.rows, run.eval_share, seed)
    logger().info("%s", sides.in_words(run.eval_share, seed))
    return OwnRows(whole.kept(sides.trained), whole.rows.select(sides.held))


def shown_name(run: RunOptions) -> str:
    """What a run trains on, in the words of its options."""
    return " ".join(run.dataset or [one.name for one in run.listed_sets])


def data_names(run: RunOptions) -> list[str]:
    """All names of data that may have to come from the hub."""
    named = _named_sets(run.eval_dataset)
    evals = named.values() if isinstance(named, Mapping) else named
    return [*run.dataset, *(path for one in run.listed_sets for path in one.path), *evals]


def _sources(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def eval_sets(run: RunOptions) -> Any:
    """The raw rows to evaluate on: of one set, of several by name, or None.

    Raises:
        ConfigError: CP103 for names that cannot be meant.
        DataError: CP2xx for what cannot be read.
    """
    if not run.eval_dataset:
        return None
    named = _named_sets(run.eval_dataset)
    if isinstance(named, Mapping):
        return {name: _open_eval([source], run) for name, source in named.items()}
    return _open_eval(named, run)


def eval_names(run: RunOptions) -> list[str]:
    """The names of the sets to evaluate on; "" for one without a name.

    Raises:
        ConfigError: CP103 for names that cannot be meant.
    """
    named = _named_sets(run.eval_dataset)
    return list(named) if isinstance(named, Mapping) else [""]


def second_sets(config: CPOConfig) -> dict[str, Any]:
    """The raw rows of constraints that have a set of their own, by their names.

    Raises:
        ConfigError: CP107 for one that names no set.
        DataError: CP2xx for what cannot be read.
    """
    return {one.name: rows_of(one) for one in config.constrained_by if one.row.own_set}


def _named_sets(given: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
    """``name=path`` words or a mapping of YAML, as a mapping; sets without names as they are."""
    if isinstance(given, Mapping):
        wrong = [name for name, source in given.items() if not isinstance(source, str)]
        if wrong:
            raise ConfigError("CP103", f"eval_dataset: {wrong[0]} should be a file or a hub id.")
        return dict(given)
    parts = [None if Path(word).exists() else _NAMED.fullmatch(word) for word in given]
    named = {part[1]: part[2] for part in parts if part}
    if not named:
        return given
    if len(named) != len(given):
        raise ConfigError(
            "CP103",
            f"eval_dataset={' '.join(given)} should be name=path with a different name for each "
            "set, or paths without names.",
        )
    return named


def _open_eval(sources: list[str], run: RunOptions) -> Any:
    data = load(_sources(sources), split=run.eval_dataset_split)
    if not isinstance(data, Mapping) or len(data) == 1:
        return pick_split(data)
    for split in EVAL_SPLITS:
        if split in data:
            return data[split]
    raise DataError(
        "CP211",
        f"eval_dataset {' '.join(sources)} has the splits {', '.join(data)}; say which one with "
        "eval_dataset_split.",
    )
