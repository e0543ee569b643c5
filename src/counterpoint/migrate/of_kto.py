"""What a run of KTO is told: it trains on no pairs, and there is a loss of pairs next to it.

Not here: how each tool names it.
"""

from __future__ import annotations

from counterpoint.errors import ConfigError
from counterpoint.objectives import APO_ZERO

KTO = "kto"
"""Its name in every tool."""

MARKS_OF_KTO = ("desirable_weight", "undesirable_weight")
"""Names by which a file of TRL is one of its KTO."""

NEAREST = f"loss_type {APO_ZERO.name} is KTO's with its baseline at 0"

BASELINE = (
    "KTO's baseline is a mean over the other rows of a batch, so that a step would depend on how "
    "it is cut"
)


def refuse_kto(name: str) -> ConfigError:
    """The error for a run of KTO, with a way to pairs.

    Args:
        name: of what says so in the file.

    Returns:
        CP102, to be raised.
    """
    return ConfigError(
        "CP102",
        f"{name} trains on no preference pairs: a row of KTO is one completion, good or bad. "
        f"{BASELINE}. Make pairs of prompts that have both kinds: write label as 1 or 0, then "
        f"counterpoint pairs FILE --text completion --score label; {NEAREST}.",
    )
