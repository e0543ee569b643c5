"""What ranks had of their own, carried over to another number of them.

    sums since the last log line   added up, and rank 0 has them: the next line is whole
    token budgets                  the least of all, since any rank may now be on any device
    random generators              a rank that was there keeps its own; a new one begins with a
                                   state that follows from the seed, the step and its number

Which of these a trainer has, it says itself (``merge_rank_states``). On the same number of ranks
nothing of this happens: each has its own state back, to the bit.

Not here: dealing a step to the ranks (``segments``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from counterpoint import ranks
from counterpoint.checkpoint.manifest import Manifest
from counterpoint.checkpoint.randomness import new_random_state
from counterpoint.checkpoint.resumption import Resumption, read_rank
from counterpoint.checkpoint.segments import Segment, resumed_segments, segments_then
from counterpoint.errors import SetupError

States = list[dict[str, Any]]
Merge = Callable[[States], Sequence[dict[str, Any]]]
"""States of the ranks that were -> that of rank 0, and that of every other one."""


def check_ranks(folder: Path, manifest: Manifest, then: int) -> None:
    """Refuse a checkpoint that lacks what some of its ranks had.

    Args:
        folder: of the checkpoint.
        manifest: as verified.
        then: ranks that wrote it.

    Raises:
        SetupError: CP526.
    """
    missing = [number for number in range(then) if f"rank-{number}.json" not in manifest.files]
    if missing:
        raise SetupError(
            "CP526",
            f"{folder} is of {then} ranks, and what rank {missing[0]} had of its own is not in it: "
            "the sums of its log line would be lost. Ranks have to write to one file system; "
            "resume from an earlier checkpoint.",
        )


def check_merge(kind: type[Any], folder: Path, then: int, now: int) -> None:
    """Refuse to carry over what only a subclass knows, where it does not say how.

    Args:
        kind: class of the trainer.
        folder: of the checkpoint.
        then: ranks that wrote it.
        now: ranks that resume from it.

    Raises:
        SetupError: CP526.
    """
    made = next(one for one in kind.__mro__ if "rank_state_dict" in vars(one))
    if issubclass(next(one for one in kind.__mro__ if "merge_rank_states" in vars(one)), made):
        return
    raise SetupError(
        "CP526",
        f"{folder} is of {then} ranks and would be resumed on {now}, but nothing says how what "
        f"{made.__name__}.rank_state_dict keeps of {then} ranks becomes that of {now}. Define "
        f"{made.__name__}.merge_rank_states, or resume on {then}.",
    )


def on_these_ranks(found: Resumption, trainer: Any) -> tuple[Resumption, list[Segment]]:
    """A checkpoint with what this rank has of it, and the segments of the run that resumes.

    Args:
        found: without what ranks had of their own.
        trainer: that resumes; its options take over the pairs of a step (``segments``), and its
            ``merge_rank_states`` what ranks had.

    Raises:
        SetupError: CP526 for what cannot be carried over.
    """
    folder, manifest, args = found.folder, found.manifest, trainer.args
    then = segments_then(found.shared, manifest.fingerprint, folder)
    before, now = then[-1].ranks, args.world_size
    check_ranks(folder, manifest, before)
    segments = resumed_segments(args, then, step=manifest.step)
    if before == now:
        return replace(found, rank=read_rank(folder, args.process_index)), segments
    check_merge(type(trainer), folder, before, now)
    merge, seed, device = trainer.merge_rank_states, args.seed, args.device
    own = carried_over(folder, manifest, before, merge, seed=seed, device=device)
    return replace(found, rank=own), segments


def carried_over(
    folder: Path,
    manifest: Manifest,
    then: int,
    merge: Merge,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """What this rank resumes with, of what another number of ranks has left.

    Args:
        folder: of a verified checkpoint.
        manifest: of it.
        then: ranks that wrote it.
        merge: makes of their own states that of rank 0 and that of every other one.
        seed: of the run.
        device: of this rank.
    """
    first, rest, loss = ranks.first_does(partial(_merged, folder, then, merge))
    mine = ranks.rank()

    def random() -> dict[str, Any]:
        if mine < then:
            own: dict[str, Any] = read_rank(folder, mine)["random"]
            return own
        words = f"{seed} {manifest.step} {mine}".encode()
        drawn = int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "big")
        return new_random_state(drawn, device)

    return {
        "random": ranks.each_does(random),
        "loss": loss,
        "own": first if mine == 0 else rest,
    }


def _merged(folder: Path, then: int, merge: Merge) -> tuple[Any, Any, Any]:
    states = [read_rank(folder, number) for number in range(then)]
    first, rest = merge([state["own"] for state in states])
    # what is logged of it is the mean over ranks
    loss = torch.stack([state["loss"].double() for state in states]).mean(0)
    return first, rest, loss.to(states[0]["loss"].dtype)
