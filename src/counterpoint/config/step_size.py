"""How many pairs make a step: the constant of an experiment, which ranks and accumulation follow.

``pairs_per_step`` names it; without it, it is what the options make of the ranks that a run began
on. Ranks, pairs of a micro-batch and accumulation only say how a step is dealt, and may change.

Not here: dealing it (``data.sampler``), what a resumed run takes over (``checkpoint.segments``).
"""

from __future__ import annotations

from typing import Any

from counterpoint.errors import ConfigError


def accumulation_for(pairs: int, *, micro_batch: int, ranks: int) -> int:
    """Micro-batches of a step on each rank; where they do not divide the pairs, some hold fewer.

    Args:
        pairs: of a step, over all ranks.
        micro_batch: most pairs of a micro-batch.
        ranks: that share the step.
    """
    return -(-pairs // (micro_batch * ranks))


def pairs_on(config: Any, ranks: int) -> int:
    """Pairs of a step on so many ranks.

    Args:
        config: a ``CPOConfig``.
        ranks: that share a step.
    """
    if config.pairs_per_step is not None:
        return int(config.pairs_per_step)
    return int(config.per_device_train_batch_size * config.gradient_accumulation_steps * ranks)


def settle_accumulation(config: Any) -> None:
    """Let the accumulation follow ``pairs_per_step``, if that is given.

    Args:
        config: a ``CPOConfig`` that knows its ranks.

    Raises:
        ConfigError: CP104 for another accumulation.
    """
    if config.pairs_per_step is None:
        return
    pairs, ranks = config.pairs_per_step, config.world_size
    micro_batch = config.per_device_train_batch_size
    follows = accumulation_for(pairs, micro_batch=micro_batch, ranks=ranks)
    given = config.gradient_accumulation_steps
    if given not in (1, follows):
        raise ConfigError(
            "CP104",
            f"gradient_accumulation_steps={given} contradicts pairs_per_step={pairs}: with "
            f"{micro_batch} pairs a device and {ranks} {'rank' if ranks == 1 else 'ranks'} it is "
            f"{follows}, and follows by itself. Leave one of them out.",
        )
    config.gradient_accumulation_steps = follows
