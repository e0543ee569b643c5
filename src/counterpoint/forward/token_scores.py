"""Trunk, then head: what a model says of each token that carries loss.

The head sees only rows that have a target, never the prompt or padding, and its logits exist
only in chunks. What pairs of one prompt have in common it sees once.

Not here: sums over completions (``pair_forward``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.head import Head
from counterpoint.forward.router import RouterSums
from counterpoint.forward.routing import Router
from counterpoint.forward.trunk import trunk
from counterpoint.records import PairBatch


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of each target of a batch; the one recipe of every pass.

    Args:
        logps: log-probability of each target, in nats.
        logit_means: mean logit over the vocabulary where each is predicted; detached.
        router: load-balancing sums of a mixture-of-experts model, else None.
        rows: called, gives the head's input at each target; of a dense head, the logits.
    """

    logps: Float[Tensor, " targets"]
    logit_means: Float[Tensor, " targets"]
    router: RouterSums | None
    rows: Callable[[], Float[Tensor, "targets features"]]


def token_scores(
    model: nn.Module,
    head: Head,
    batch: PairBatch,
    routers: tuple[Router, ...] = (),
    *,
    at_head: Callable[[Tensor], None] = lambda states: None,
) -> TokenScores:
    """Trunk, then head: the log-probability of each target.

    Args:
        model: as for ``pair_forward``.
        head: its head.
        batch: the pairs.
        routers: of the model, to have their sums as well; none without.
        at_head: called with the trunk's output before the head begins, for whoever watches memory.
    """
    states, router = trunk(model, head, batch, routers)
    at_head(states)
    source, ids, asked, answers = batch.target_source, batch.target_ids, batch.asked, batch.answers
    if asked is not None:
        source, ids = source.index_select(0, asked), ids.index_select(0, asked)
    rows = states.flatten(0, 1).index_select(0, source)

    def of_targets(values: Tensor) -> Tensor:
        return values if answers is None else values.index_select(0, answers)

    logps, means = map(of_targets, head.token_logps(rows, ids))
    return TokenScores(logps, means, router, lambda: of_targets(rows))
