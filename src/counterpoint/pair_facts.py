"""What a loss may ask the forward pass for beside sums of log-probabilities.

Not here: how it is found (``forward.facts``), what is made of it (``losses.of_tokens``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class FactsAsked(NamedTuple):
    """Which facts a loss asks for.

    Args:
        shared: sums over the places that both completions have.
        likeness: how like the policy's own samples the pair is.
    """

    shared: bool = False
    likeness: bool = False


@dataclass(frozen=True, slots=True)
class PairFacts:
    """The facts; None where no loss asks for them.

    Args:
        chosen_shared: sum of log-probabilities over the chosen completion's first targets, as many
            as the shorter completion of the pair has, in nats.
        rejected_shared: the same of the rejected completion.
        likeness: mean over a completion's targets of log p(target) - log sum p^2, with the sum
            over the vocabulary; of both completions together, in nats, without a gradient.
    """

    chosen_shared: Float[Tensor, " pairs"] | None = None
    rejected_shared: Float[Tensor, " pairs"] | None = None
    likeness: Float[Tensor, " pairs"] | None = None


NOTHING_ASKED, NO_FACTS = FactsAsked(), PairFacts()
