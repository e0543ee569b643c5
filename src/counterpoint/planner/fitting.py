"""The token budget of a run that was given none: only where its micro-batches would not fit.

How a step is cut changes its gradient by rounding only, so the trainer may choose. Where the
planner predicts that ``per_device_train_batch_size`` pairs fit, they stay together.

Not here: the prediction (``plan``), and what is done where it was wrong (``step.share``).
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import nn

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.errors import ModelError
from counterpoint.forward.layouts import REFERENCE
from counterpoint.planner.bound import surely_fits
from counterpoint.planner.machine import SHARE, available_memory, show_bytes
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths
from counterpoint.runlog import logger


def fitting_budget(model: nn.Module, args: CPOConfig, pairs: Any) -> int | None:
    """The ``max_micro_batch_tokens`` that a run needs, with a line in the log on why.

    Args:
        model: ready to train, on its device.
        args: the run's options.
        pairs: prepared training pairs.

    Returns:
        None where the options say it, where all fits, and where nothing is known: of a stream's
        lengths, or of a model that does not run without data.
    """
    if args.max_micro_batch_tokens is not None or not isinstance(pairs, Dataset):
        return None
    lengths = Lengths.of(pairs)
    # two processes on one machine's memory will each want the same at the same time
    on_cpu = args.device.type == "cpu"  # where processes share the memory
    left = available_memory(args.device) // (ranks.launched_here() if on_cpu else 1)
    tokens = lengths.heaviest(args.per_device_train_batch_size, REFERENCE.name)
    if surely_fits(model, tokens, sum(lengths.longest(REFERENCE.name)), left):
        return None
    try:
        planner = Planner(model, args, lengths, ranks=args.world_size)
        weights = planner.demand(planner.setting).holdings.weights
        usable = weights + round(SHARE * left)
        asked = planner.asked(usable)
        budget = planner.budget(usable)
    except ModelError as error:
        logger().info("memory is not planned: %s", error.message)
        return None
    seen = (
        f"{show_bytes(asked.peak - weights)} predicted beside the weights for micro-batches of "
        f"{asked.pairs} pairs ({asked.tokens:,} tokens), {show_bytes(left)} available"
    )
    if asked.fits:
        logger().info("memory: %s: they fit", seen)
        return None
    if not budget:
        logger().warning(
            "memory: %s; not even the longest pair is predicted to fit. counterpoint plan lists "
            "what helps.",
            seen,
        )
        budget = lengths.heaviest(1, planner.setting.layout)
    logger().info("memory: %s: micro-batches are cut to %s tokens", seen, f"{budget:,}")
    return budget
