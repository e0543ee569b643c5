"""``trainer_state.json``: transformers' account of a training, as strict JSON and read with care.

transformers writes NaN bare, which JSON does not have, and takes whatever the file holds for a
state. Here odd numbers are marked (``strict``), and a file that is no such state is refused before
anything goes on from it.

Not here: what else a checkpoint holds (``checkpoint.tree``), whether it is whole (``manifest``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from counterpoint.errors import SetupError
from counterpoint.run_schema import (
    anything,
    check_sizes,
    list_of,
    mapping_of,
    number,
    optional,
    record,
    text,
    truth,
    whole,
)
from counterpoint.strict import marked, strict_json, unmarked

_ODD_OR = optional(lambda value, place: number(unmarked(value), place))

STATE = record(
    global_step=whole,
    max_steps=whole,
    epoch=_ODD_OR,
    best_metric=_ODD_OR,
    best_global_step=optional(whole),
    best_model_checkpoint=optional(text),
    log_history=list_of(mapping_of(anything)),
    num_input_tokens_seen=number,
    stateful_callbacks=optional(mapping_of(anything)),
)
"""What a reader relies on."""


def write_state(state: TrainerState, path: Path) -> None:
    """Write the file.

    Args:
        state: of the training.
        path: of the file.
    """
    content = strict_json(marked(asdict(state)), indent=2, sort_keys=True)
    path.write_text(f"{content}\n", encoding="utf-8")


def read_state(path: Path) -> Mapping[str, Any]:
    """Read the file.

    Args:
        path: of the file.

    Raises:
        SetupError: CP512 for one that is no state of a training.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_sizes(content)
        STATE(content, path.name)
        unknown = content.keys() - {field.name for field in fields(TrainerState)}
        missing = {"global_step", "max_steps"} - content.keys()
        if unknown or missing:
            name = sorted(unknown or missing)[0][:40]
            raise ValueError(f"{name} is {'not known' if unknown else 'missing'}")
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError("CP512", f"{path} is damaged: {error}.") from error
    state: Mapping[str, Any] = content
    return state


def take_numbers(state: TrainerState) -> None:
    """Make numbers of what ``write_state`` has marked, once transformers has read the file.

    Args:
        state: as read.
    """
    for field in fields(state):
        setattr(state, field.name, unmarked(getattr(state, field.name)))


SHARED = record(
    place=record(epoch=whole, steps=whole, closed=truth, stopped=truth, epoch_stopped=truth),
    totals=mapping_of(anything),
    scheduler=mapping_of(anything),
    scaler=optional(mapping_of(anything)),
    callbacks=mapping_of(list_of(anything)),
    streams=mapping_of(whole),
    own=mapping_of(anything),
)
"""What all ranks have in common, as ``ResumableTrainer`` writes it."""

RANK = record(random=mapping_of(anything), own=mapping_of(anything))
"""What one rank has alone."""

_RANK = ("random", "loss", "own")
_SHARED = ("place", "totals", "scheduler", "scaler", "callbacks", "streams", "own")


def check_trees(shared: Any, rank: Any, folder: Path) -> None:
    """Refuse states of a checkpoint that are none.

    Args:
        shared: of all ranks.
        rank: of this one; None where it had none.
        folder: of the checkpoint.

    Raises:
        SetupError: CP512.
    """
    try:
        SHARED(shared, "the run's state")
        if rank is not None:
            RANK(rank, "the rank's state")
        missing = [name for name in _SHARED if name not in shared]
        missing += [name for name in _RANK if rank is not None and name not in rank]
        if missing:
            raise ValueError(f"the run's state lacks {missing[0]}")
    except ValueError as error:
        raise SetupError("CP512", f"{folder} is damaged: {error}.") from error
