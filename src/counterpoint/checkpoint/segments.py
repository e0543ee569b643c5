"""On how many ranks each part of a run was trained, and how a resumed one deals its steps.

The pairs of a step are the constant of an experiment. A run that resumes on other ranks with the
options it was begun with keeps them, and its accumulation follows. Options that were changed must
come to the same pairs, or name them (``pairs_per_step``).

Not here: what ranks had of their own (``rank_states``), and the comparison of experiments
(``experiment``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.checkpoint.experiment import PAIRS
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.config import CPOConfig, accumulation_for
from counterpoint.errors import SetupError
from counterpoint.log import logger

OPTIONS = "training_args.json"
_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a run whose steps were dealt alike.

    Args:
        step: optimizer steps done before it.
        pairs: of a step, over all ranks.
        ranks: that shared a step.
        micro_batch: most pairs of a micro-batch, ``per_device_train_batch_size``.
        accumulation: micro-batches of a step on each rank.
        given: ``gradient_accumulation_steps`` as the options gave it; None beside
            ``pairs_per_step``, which it follows.
    """

    step: int
    pairs: int
    ranks: int
    micro_batch: int
    accumulation: int
    given: int | None

    def facts(self) -> dict[str, int]:
        """For ``run.json``, by the names of options."""
        return {
            "step": self.step,
            "ranks": self.ranks,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
        }

    def deals_as(self, other: Segment) -> bool:
        """Whether a step is dealt as in another one."""
        return replace(self, step=0, given=None) == replace(other, step=0, given=None)


def segment_of(args: CPOConfig, step: int = 0, *, given: int | None = None) -> Segment:
    """The part of a run that begins with these options.

    Args:
        args: of the run.
        step: optimizer steps done before it.
        given: the accumulation that the options gave; None: what they have now.
    """
    now = args.gradient_accumulation_steps
    if given is None and args.pairs_per_step is None:
        given = now
    micro_batch = args.per_device_train_batch_size
    return Segment(step, args.step_pairs, args.world_size, micro_batch, now, given)


def segments_then(
    shared: Mapping[str, Any], fingerprint: Fingerprint, folder: Path
) -> list[Segment]:
    """The parts of the run that a checkpoint is of, its own last.

    Args:
        shared: what all ranks had in common.
        fingerprint: of its manifest.
        folder: of the checkpoint.

    Raises:
        SetupError: CP512 where they are none.
    """
    try:
        if "segments" in shared:
            return [Segment(**one) for one in shared["segments"]]
        options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))  # up to 0.4
        pairs, ranks = (int(fingerprint[name] or 1) for name in (PAIRS, "ranks"))
        micro_batch, accumulation = (int(options[name]) for name in _SIZES)
        return [Segment(0, pairs, ranks, micro_batch, accumulation, accumulation)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SetupError(
            "CP512", f"{folder} is damaged: it does not say on how many ranks its run was: {error}."
        ) from error


def resumed_segments(args: CPOConfig, then: Sequence[Segment], *, step: int) -> list[Segment]:
    """The parts of a run that resumes; its options take over the pairs of a step on other ranks.

    Args:
        args: of the run; ``pairs_per_step`` and the accumulation may be set.
        then: of the checkpoint, at least one.
        step: optimizer steps done.
    """
    last, now = then[-1], segment_of(args, step)
    as_begun = any(
        (one.pairs, one.micro_batch, one.given) == (last.pairs, now.micro_batch, now.given)
        for one in then
    )
    if as_begun and now.given is not None and now.pairs != last.pairs:
        args.pairs_per_step = last.pairs
        args.gradient_accumulation_steps = accumulation_for(
            last.pairs, micro_batch=now.micro_batch, ranks=now.ranks
        )
        now = segment_of(args, step, given=now.given)
    if now.ranks != last.ranks and now.pairs == last.pairs:
        logger().info("%s", _in_words(args, now, last))
    return [*then] if last.deals_as(now) else [*then, now]


def _in_words(args: CPOConfig, now: Segment, then: Segment) -> str:
    drawn = (
        "its numbers are the same up to rounding"
        if args.disable_dropout
        else "its numbers are the same up to rounding, and up to dropout, which each rank draws "
        "for itself"
    )
    return (
        f"the run was on {_ranks(then.ranks)} and resumes on {_ranks(now.ranks)}: a step stays "
        f"{now.pairs} pairs, now at most {now.micro_batch} a device x {now.accumulation} "
        f"accumulated, and {drawn}"
    )


def _ranks(number: int) -> str:
    return f"{number} {'rank' if number == 1 else 'ranks'}"


def as_state(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """For a checkpoint."""
    return [asdict(one) for one in segments]
