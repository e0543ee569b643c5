"""Options of the loss that TRL's CPO does not have.

Not here: all others (``options``), and what contradicts what (``checks``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from counterpoint.config.checks import those
from counterpoint.objectives import reading


@dataclass
class PairOptions:
    """What a loss may read of a pair beyond TRL's CPO; a part of ``CPOConfig``."""

    use_weighting: bool = field(
        default=False,
        metadata={
            "help": "Counterpoint: weigh each pair's preference loss by how like the policy's own "
            "samples it is (WPO), with any loss; TRL's name for it in DPO."
        },
    )
    ld_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Counterpoint: weight in [0, 1] of tokens past the shorter completion of a "
            f"pair (LD-DPO); {those(reading('ld_alpha'))}. None: 1. TRL's name for it in DPO."
        },
    )
    arpo_scale: float = field(
        default=0.9,
        metadata={
            "help": "Counterpoint: tau = min(scale * exp(eta * |difference of mean log p|) - 1, 1) "
            f"is how much of the rejected completion counts, > 0; {those(reading('arpo_scale'))}. "
            "0.9 in its authors' code, 1 in the paper."
        },
    )
    arpo_eta: float = field(
        default=0.4,
        metadata={
            "help": "Counterpoint: the same tau's eta, by nats a token, >= 0. 0.4 in the authors' "
            "code, 1.5 in the paper."
        },
    )
