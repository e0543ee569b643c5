"""Whether a run fits in memory, and the token budget of one that would not.

Asked before anything is trained, by the trainer and by the doctor:

1. A bound far above what any decoder needs is known in a millisecond, so that small runs start as
   fast as ever (``surely_fits``).
2. Where it is too tight for that, the run is rehearsed (``plan_where_tight``).
3. How a step is cut changes its gradient by rounding only, so the trainer may choose: where
   ``per_device_train_batch_size`` pairs are not predicted to fit, it cuts (``fitting_budget``).

Not here: the prediction (``plan``), and what is done where it was wrong (``step.share``).
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import nn

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.errors import DataError, ModelError
from counterpoint.log import logger
from counterpoint.models.family import family_of
from counterpoint.planner.machine import SHARE, available_memory, show_bytes
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths
from counterpoint.tensor_parts import shape_of

TIMES_HELD = 24
"""Bytes of a trained weight's gradient, moments, copy in 16 bits and second gradient, and more:
in float32 4 + 8 + 2 + 4."""

TIMES_KEPT = 64
"""Bytes that a matrix keeps of each number that goes in or out of it: a decoder's layer keeps
about 6, as measured over the inputs and outputs of all of its matrices."""

SCORE = 32
"""Bytes of an attention score where all of them are kept, as eager attention does."""


def plan_where_tight(
    model: nn.Module,
    args: CPOConfig,
    lengths: Lengths,
    *,
    pairs: int,
    left: int,
    adapter: Any = None,
) -> Planner | None:
    """The planner of a run, where micro-batches of so many pairs do not fit by far.

    Args:
        model: whose weights are there already.
        args: the run's options.
        lengths: of its training pairs.
        pairs: of a micro-batch.
        left: bytes beside the weights.
        adapter: a ``peft.PeftConfig`` that will be put on the model; None if it has its own.

    Returns:
        None where they do, and nothing need be rehearsed.

    Raises:
        ModelError: CP306 for a model whose code cannot run without data.
    """
    reference = family_of(model.config).layouts[-1].name
    tokens, longest = lengths.heaviest(pairs, reference), sum(lengths.longest(reference))
    if lengths.shown is not None:
        longest = max(longest, int(lengths.shown.patches.max()))
    if surely_fits(model, tokens, longest, left):
        return None
    ranks = args.world_size
    shards = ranks // (args.fsdp_replicas or 1) if args.fsdp else 1
    return Planner(model, args, lengths, adapter=adapter, ranks=ranks, shards=shards)


def fitting_budget(
    model: nn.Module, args: CPOConfig, pairs: Any, encoder: Any = None
) -> int | None:
    """The ``max_micro_batch_tokens`` that a run needs, with a line in the log on why.

    Args:
        model: ready to train, on its device.
        args: the run's options.
        pairs: prepared training pairs.
        encoder: of the run; without it pictures are not counted.

    Returns:
        None where the options say it, where all fits, and where nothing is known: of a stream's
        lengths, or of a model that does not run without data.
    """
    if args.max_micro_batch_tokens is not None or not isinstance(pairs, Dataset):
        return None
    micro_batch = args.per_device_train_batch_size
    # two processes on one machine's memory will each want the same at the same time
    on_cpu = args.device.type == "cpu"  # where processes share the memory
    left = available_memory(args.device) // (ranks.launched_here() if on_cpu else 1)
    left = max(0, left - kept_of_pictures(args))
    try:
        lengths = Lengths.of(pairs, encoder)
        planner = plan_where_tight(model, args, lengths, pairs=micro_batch, left=left)
        if planner is None:
            return None
        weights = planner.demand(planner.setting).holdings.weights
        usable = weights + round(SHARE * left)
        asked = planner.asked(usable)
        budget = planner.budget(usable)
    except (ModelError, DataError) as error:
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


def kept_of_pictures(args: CPOConfig) -> int:
    """Bytes of a device that what is kept of pictures may take: on a CPU, where the host's are.

    Args:
        args: the run's options.
    """
    return round(1e9 * args.picture_cache_gb) if args.device.type == "cpu" else 0


def surely_fits(model: nn.Module, tokens: int, longest: int, memory: int) -> bool:
    """Whether a step fits by far.

    Args:
        model: whose weights are there already.
        tokens: input tokens and patches of a micro-batch.
        longest: tokens of its longest sequence, or patches of a pair.
        memory: bytes that are left.
    """
    inner: Any = model
    config = inner.config.get_text_config()
    apart = {id(table.weight) for table in _tables(inner)}
    held = TIMES_HELD * sum(weight.numel() for weight in model.parameters())
    # experts' matrices have a dimension more, and may all be used
    shapes = [shape_of(weight) for weight in model.parameters() if id(weight) not in apart]
    wide = sum((shape[-1] + shape[-2]) * shape[:-2].numel() for shape in shapes if len(shape) >= 2)
    tower = getattr(inner.config, "vision_config", None)
    scores = sum(_scores(one) for one in (config, tower) if one is not None)
    each = TIMES_KEPT * wide + SCORE * scores * longest
    return 2 * (held + tokens * each) <= memory


def _scores(config: Any) -> int:
    """Attention scores of a token with each other one, over all layers."""
    layers, heads = (
        getattr(config, name, None) or 1 for name in ("num_hidden_layers", "num_attention_heads")
    )
    return int(layers * heads)


def _tables(model: Any) -> list[Any]:
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [table for table in found if getattr(table, "weight", None) is not None]
