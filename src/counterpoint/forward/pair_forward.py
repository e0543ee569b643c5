"""Model + ``PairBatch`` -> ``PairLogps``: the forward pass of every loss and every layout.

    hidden states where a target is predicted -> token log-probabilities -> sums per completion

Up to the first arrow, and over it, it is ``token_scores``.

Not here: how pairs are laid into rows (``layouts``), what is made of the sums (``losses``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.facts import facts_of, sum_by_sequence
from counterpoint.forward.head import Head
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.router import RouterSums
from counterpoint.forward.routing import Router
from counterpoint.forward.token_scores import TokenScores, token_scores
from counterpoint.forward.trunk import initial_rows
from counterpoint.pair_facts import NOTHING_ASKED, FactsAsked
from counterpoint.records import PairBatch, PairLogps


@dataclass(frozen=True, slots=True)
class PairOutput:
    """Everything one forward pass tells.

    Args:
        logps: what the losses read.
        logit_sums: mean logit over the vocabulary, summed over each completion's targets, in the
            order of the batch's sequences; detached.
        router: load-balancing sums of a mixture-of-experts model, else None.
    """

    logps: PairLogps
    logit_sums: Float[Tensor, " sequences"]
    router: RouterSums | None


def pair_forward(
    model: nn.Module,
    head: Head,
    batch: PairBatch,
    *,
    routers: tuple[Router, ...] = (),
    initial: InitialPolicy | None = None,
    asked: FactsAsked = NOTHING_ASKED,
    at_scores: Callable[[TokenScores], None] = lambda scores: None,
) -> PairOutput:
    """Log-probabilities of the completions of every pair.

    Args:
        model: a causal language model, plain or wrapped (PEFT, DDP), on the batch's device.
        head: its head, as ``find_head`` and ``prove_head`` give it.
        batch: the pairs.
        routers: of the model, to have their sums as well; none without.
        initial: what the model was, to have the drift from it as well; None without.
        asked: what the loss asks for beside the sums.
        at_scores: called with the scores of each token, for whoever looks for the first bad one.

    Returns:
        Sums over the targets of each completion, float64 where the device has it.
    """
    # first, while no graph of the policy takes memory
    then = None if initial is None else initial_rows(initial, head, batch)
    scores = token_scores(model, head, batch, routers)
    at_scores(scores)
    pairs, sums = len(batch), sum_by_sequence(scores.logps, batch)
    drift = None
    if initial is not None and then is not None:
        each = sum_by_sequence(head.token_kl(scores.rows(), then, initial), batch)
        drift = each[:pairs] + each[pairs : 2 * pairs]
    chosen, rejected, *gold = sums.view(-1, pairs)
    counts = batch.target_counts.view(-1, pairs)
    facts = facts_of(asked, scores.logps, scores.rows, head, batch)
    logps = PairLogps(chosen, rejected, counts[0], counts[1], drift, facts, batch.reference)
    if gold:
        logps = replace(logps, gold=gold[0], gold_tokens=batch.gold_tokens)
    return PairOutput(logps, sum_by_sequence(scores.logit_means, batch), scores.router)
