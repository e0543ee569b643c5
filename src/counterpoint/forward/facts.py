"""Sums over the targets of completions, and what else a loss asks for (``PairFacts``).

Not here: the targets' log-probabilities (``pair_forward``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterpoint.forward.head import Head
from counterpoint.forward.square_sums import log_square_sums
from counterpoint.pair_facts import NO_FACTS, NOTHING_ASKED, FactsAsked, PairFacts
from counterpoint.records import PairBatch, exact_dtype


def sum_by_sequence(
    values: Float[Tensor, " targets"], batch: PairBatch
) -> Float[Tensor, " sequences"]:
    """Sums over the targets of each completion, in float64 where the device has it.

    Args:
        values: one for each target.
        batch: whose targets they are.
    """
    exact = values.to(exact_dtype(values.device))
    return torch.segment_reduce(exact, "sum", lengths=batch.target_counts, unsafe=True)


def facts_of(
    asked: FactsAsked,
    logps: Float[Tensor, " targets"],
    rows: Callable[[], Float[Tensor, "targets features"]],
    head: Head,
    batch: PairBatch,
) -> PairFacts:
    """What is asked for, and nothing else.

    Args:
        asked: by the loss.
        logps: log-probability of each target, in nats.
        rows: called, gives the head's input at each target; of a dense head, the logits.
        head: of the model.
        batch: the pairs.
    """
    if asked == NOTHING_ASKED:
        return NO_FACTS
    pairs = len(batch)
    chosen = rejected = likeness = None
    if asked.shared:
        within = torch.where(_shared_places(batch), logps, torch.zeros_like(logps))
        chosen, rejected = sum_by_sequence(within, batch).view(-1, pairs)[:2]
    if asked.likeness:
        with torch.no_grad():
            states = rows()
            squares = log_square_sums(head.projection(states), states)
        means = sum_by_sequence(logps.detach() - squares, batch) / batch.target_counts
        likeness = means[:pairs] + means[pairs : 2 * pairs]
    return PairFacts(chosen, rejected, likeness)


def _shared_places(batch: PairBatch) -> Bool[Tensor, " targets"]:
    """Which targets stand where the pair's other completion has one too."""
    counts, pairs, total = batch.target_counts, len(batch), len(batch.target_ids)
    chosen, rejected = counts.view(-1, pairs)[:2]
    shorter = torch.minimum(chosen, rejected).repeat(batch.completions)
    # the length is known here: asking the device for it would wait
    begins = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=total)
    places = torch.arange(total, device=counts.device) - begins
    return places < shorter.repeat_interleave(counts, output_size=total)
