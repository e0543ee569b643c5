"""Every exchange between ranks, and the only place that asks whether there are others.

Each function must be called by every rank at the same place of a run; with one process it gives
back what it was given. Work that may fail says how it went before any rank goes on, so that all of
them stop with the same error: a rank that failed alone would leave the others waiting for it.

Not here: what gradients go through, which is the engine's.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint.errors import CounterpointError

Result = TypeVar("Result")


def rank() -> int:
    """The number of this rank, from 0; 0 with one process."""
    return dist.get_rank() if _in_a_group() else 0


def count() -> int:
    """How many ranks there are, at least 1."""
    return dist.get_world_size() if _in_a_group() else 1


def alone() -> bool:
    """Whether there is no other rank."""
    return count() == 1


def launched() -> int:
    """How many processes a launcher says that it has started, before they have met; at least 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_here() -> int:
    """How many of them share this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def add_up(mine: Tensor) -> Tensor:
    """The sum over ranks, written into the tensor itself."""
    return _reduced(mine, dist.ReduceOp.SUM)


def from_the_first(mine: Tensor) -> Tensor:
    """What rank 0 has, written into the tensor itself."""
    if not alone():
        with _met(mine) as there:
            dist.broadcast(there, src=0)
    return mine


def least(mine: Tensor) -> Tensor:
    """The least of all ranks, entry by entry, written into the tensor itself."""
    return _reduced(mine, dist.ReduceOp.MIN)


def most(mine: Tensor) -> Tensor:
    """The greatest of all ranks, entry by entry, written into the tensor itself."""
    return _reduced(mine, dist.ReduceOp.MAX)


def gathered(mine: Result) -> list[Result]:
    """What each rank has, in the order of ranks; it must pickle."""
    if alone():
        return [mine]
    every: list[Any] = [None] * count()
    dist.all_gather_object(every, mine)
    return every


def everywhere(mine: list[Result]) -> list[Result]:
    """The entries of all ranks in one list, in the order of ranks."""
    return [entry for part in gathered(mine) for entry in part]


def exchanged(parts: list[Tensor]) -> list[Tensor]:
    """Give each rank one part, and get what each has for this one, in the order of ranks.

    Args:
        parts: one for each rank, alike but for their first axis, on the device of the run.
    """
    if alone():
        return parts
    sent = torch.tensor([len(part) for part in parts], device=parts[0].device)
    coming = torch.empty_like(sent)
    dist.all_to_all_single(coming, sent)
    sizes: list[int] = coming.tolist()
    found = parts[0].new_empty((sum(sizes), *parts[0].shape[1:]))
    dist.all_to_all_single(found, torch.cat(parts), sizes, sent.tolist())
    return list(torch.split(found, sizes))


def first_does(work: Callable[[], Result]) -> Result:
    """Let rank 0 do something; every rank gets what it returns, or raises what it raises.

    Args:
        work: its result travels to the other ranks.
    """
    if alone():
        return work()
    outcome = [_attempt(work) if rank() == 0 else None]
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
    if alone():
        return work()
    mine = _attempt(work)
    for number, error in enumerate(gathered(mine.error)):
        if error is not None:
            _settled(_Outcome(error=error), number)
    result: Result = mine.result
    return result


def each_gives(work: Callable[[], Result]) -> list[Result]:
    """Let every rank do something; every rank gets what all of them return, in their order.

    Where one fails, all of them raise the first one's error.

    Args:
        work: must meet no other rank; its result travels.
    """
    if alone():
        return [work()]
    outcomes = gathered(_attempt(work))
    return [_settled(outcome, number) for number, outcome in enumerate(outcomes)]


def raised_between_ranks(error: BaseException) -> bool:
    """Whether an exchange between ranks raised an error: not this package, and not the model."""
    text = str(error).lower()
    return not alone() and (isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text)


@cache
def leave_at_exit() -> None:
    """Let this process leave its group before Python ends, however it ends.

    Nobody else does it: accelerate makes the group with the first options, and a process whose
    group is still there may abort while Python takes its modules apart, after a run that has ended
    well.
    """
    atexit.register(_leave)


def _leave() -> None:
    if not _in_a_group():
        return
    # NCCL would wait for what a failed process never sent
    if hasattr(sys, "last_value") and dist.get_backend() != "gloo":
        return
    dist.destroy_process_group()


def _in_a_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _reduced(mine: Tensor, how: Any) -> Tensor:
    if not alone():
        with _met(mine) as there:
            dist.all_reduce(there, op=how)
    return mine


@contextmanager
def _met(mine: Tensor) -> Iterator[Tensor]:
    """A tensor where it can be exchanged, for which it is written into in the end.

    What waits in the host's memory (``optimizer_offload``) is nothing that NCCL knows.
    """
    if mine.device.type != "cpu" or "cpu:" in dist.get_backend_config():
        yield mine
        return
    there = mine.to(_accelerator(), copy=True)
    yield there
    mine.copy_(there)


def _accelerator() -> torch.device:
    return torch.device(torch.accelerator.current_device_index())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How it went on one rank."""

    result: Any = None
    error: Exception | None = None


def _attempt(work: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(result=work())
    except (CounterpointError, OSError) as error:
        return _Outcome(error=error)
    except Exception as error:  # of a class that another process may not know
        return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"))


def _settled(outcome: Any, where: int) -> Any:
    if outcome.error is None:
        return outcome.result
    if where != rank():
        outcome.error.add_note(f"It was raised on rank {where}.")
    raise outcome.error
