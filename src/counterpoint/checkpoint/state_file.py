"""``trainer_state.json``: transformers' account of a training, as strict JSON and read with care.

transformers writes NaN bare, which JSON does not have, and takes whatever the file holds for a
state. Here odd numbers are marked (``strict``), and a file that is no such state is refused before
anything resumes from it.

Not here: what else a checkpoint holds (``checkpoint.tree``), whether it is whole (``manifest``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from counterpoint.errors import SetupError
from counterpoint.run_schema import (
    Check,
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

TRAINER_STATE = "trainer_state.json"
"""transformers' own account of a run; its name is what its callbacks and the hub look for."""

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
    segments=list_of(
        record(
            step=whole,
            pairs=whole,
            ranks=whole,
            micro_batch=whole,
            accumulation=whole,
            given=optional(whole),
        )
    ),
    own=mapping_of(anything),
)
"""What all ranks have in common, as ``SavingTrainer`` writes it."""


def _bytes(length: int | None = None) -> Check:
    def check(value: Any, place: str) -> None:
        plain = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1
        if not plain or length not in (None, len(value)):
            raise ValueError(f"{place} should be {length or 'some'} bytes")

    return check


def _twister(value: Any, place: str) -> None:
    if value != "MT19937":
        raise ValueError(f"{place} should be MT19937")


RANDOM = record(
    python=record(version=whole, words=_bytes(4 * 625), gauss=optional(number)),
    numpy=record(
        kind=_twister, words=_bytes(4 * 624), position=whole, has_gauss=whole, gauss=number
    ),
    torch=_bytes(),
)
"""The random generators of a rank, as ``checkpoint.randomness`` has them."""

RANK = record(random=RANDOM, own=mapping_of(anything))
"""What one rank has alone."""

OPTIMIZER = record(
    groups=list_of(record(params=list_of(text))), state=mapping_of(mapping_of(anything))
)
"""The state of an optimizer, as ``checkpoint.optimizer`` has it."""

_RANDOM = ("python", "numpy", "torch")
_RANK = ("random", "loss", "own")
_SHARED = ("place", "totals", "scheduler", "scaler", "callbacks", "streams", "own")


def check_optimizer(saved: Any, folder: Path) -> Any:
    """Refuse a state of an optimizer that is none.

    Args:
        saved: as read.
        folder: of the checkpoint.

    Raises:
        SetupError: CP512.
    """
    try:
        OPTIMIZER(saved, "the optimizer's state")
        missing = sorted({"groups", "state"} - saved.keys())
        missing += ["params" for group in saved.get("groups", ()) if "params" not in group]
        if missing:
            raise ValueError(f"the optimizer's state lacks {missing[0]}")
        return saved
    except ValueError as error:
        raise SetupError("CP512", f"{folder} is damaged: {error}.") from error


def check_shared(shared: Any, folder: Path) -> None:
    """Refuse what is no state of all ranks.

    Args:
        shared: as read.
        folder: of the checkpoint.

    Raises:
        SetupError: CP512.
    """
    _check(shared, SHARED, "the run's state", _SHARED, folder)


def check_rank(rank: Any, folder: Path) -> None:
    """Refuse what is no state of one rank.

    Args:
        rank: as read.
        folder: of the checkpoint.

    Raises:
        SetupError: CP512.
    """
    _check(rank, RANK, "the rank's state", _RANK, folder)
    _check(rank["random"], RANDOM, "the rank's random state", _RANDOM, folder)


def _check(state: Any, holds: Check, what: str, needed: tuple[str, ...], folder: Path) -> None:
    try:
        holds(state, what)
        missing = [name for name in needed if name not in state]
        if missing:
            raise ValueError(f"{what} lacks {missing[0]}")
    except ValueError as error:
        raise SetupError("CP512", f"{folder} is damaged: {error}.") from error
