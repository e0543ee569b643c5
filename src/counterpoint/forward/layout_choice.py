"""Which layout a run tries first, and what is said where it is not the one that was asked for.

Not here: what a layout is (``layouts``), the proof that may turn a run to another (``agreement``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from counterpoint.errors import ConfigError
from counterpoint.forward.layouts import AUTO, LAYOUTS, PADDED, SHARED, Layout


def first_choice(
    model: nn.Module,
    wanted: str,
    *,
    dropout_stays: bool = True,
    possible: Sequence[Layout] = (SHARED, PADDED),
) -> tuple[Layout, str | None]:
    """The layout that a run tries, as far as it is known before anything is computed.

    Args:
        model: as for ``Layout.why_not``.
        wanted: the option ``layout``.
        dropout_stays: as for ``Layout.why_not``.
        possible: of the model's family, those that ``AUTO`` tries in their order; the last is the
            reference.

    Returns:
        The layout; and where it is not the first of those that were tried, why it is not that.
    """
    *others, reference = possible
    if wanted == reference.name:
        return reference, "as asked for"
    first = None
    for layout in others if wanted == AUTO else (LAYOUTS[wanted],):
        reason = layout.why_not(model, dropout_stays=dropout_stays)
        if reason is None:
            return layout, first
        first = first or reason
    return reference, first


def must_hold(layout: Layout, wanted: str, reason: str | None) -> None:
    """Stop a run that asked for a layout which is not possible.

    Args:
        layout: what the run would use.
        wanted: the option ``layout``.
        reason: why it is no other.

    Raises:
        ConfigError: CP104 where another was asked for by its name.
    """
    if wanted not in (AUTO, layout.name):
        raise ConfigError("CP104", not_possible(wanted, reason))


def not_possible(wanted: str, reason: str | None) -> str:
    """CP104 in words."""
    return f"layout={wanted!r} is not possible: {reason}."
