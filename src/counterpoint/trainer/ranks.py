"""Work that one rank does for all, or all do together, and an error that is everybody's.

A rank that fails alone would leave the others waiting for it. Here each says how it went before
any goes on, so that all of them stop, with the same error.

Not here: the arithmetic of ranks, which travels as tensors.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from counterpoint.errors import CounterpointError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How it went on one rank."""

    result: Any = None
    error: Exception | None = None


def first_does(work: Callable[[], Result]) -> Result:
    """Let rank 0 do something; every rank gets what it returns, or raises what it raises.

    Args:
        work: its result travels to the other ranks.
    """
    if not _several():
        return work()
    outcome = [_attempt(work) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0)
    result: Result = _settled(outcome[0], 0)
    return result


def each_does(work: Callable[[], Result]) -> Result:
    """Let every rank do something; where one fails, all of them raise the first one's error.

    Args:
        work: must meet no other rank.

    Returns:
        What this rank's own work returned.
    """
    if not _several():
        return work()
    mine = _attempt(work)
    errors: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine.error)
    for rank, error in enumerate(errors):
        if error is not None:
            _settled(_Outcome(error=error), rank)
    result: Result = mine.result
    return result


@cache
def leave_at_exit() -> None:
    """Let this process leave its group before Python ends, however it ends.

    Nobody else does it: accelerate makes the group with the first options, and a process whose
    group is still there may abort while Python takes its modules apart, after a run that has ended
    well.
    """
    atexit.register(_leave)


def _leave() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        return
    # NCCL would wait for what a failed process never sent
    if hasattr(sys, "last_value") and dist.get_backend() != "gloo":
        return
    dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _attempt(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(result=work())
    except (CounterpointError, OSError) as error:
        return _Outcome(error=error)
    except Exception as error:  # of a class that another process may not know
        return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"))


def _settled(outcome: Any, rank: int) -> Any:
    if outcome.error is None:
        return outcome.result
    if rank != dist.get_rank():
        outcome.error.add_note(f"It was raised on rank {rank}.")
    raise outcome.error
