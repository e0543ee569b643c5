"""Checks of what the loss compares with: whether it can be asked for every pair, and reads them.

Not here: asking it (``step.references``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import Finding, find
from counterpoint.model_seams import loaded_from
from counterpoint.models.reference import check_reference, reference_named
from counterpoint.objectives import INITIAL, LOSSES


def of_reference(
    args: CPOConfig, model: Any, tokenizer: Any, *, streams: bool
) -> Iterator[Finding]:
    """Look at the reference of a run whose loss has one.

    Args:
        args: the run's options.
        model: as the run begins with it; None: not known.
        tokenizer: of the run; None: not known.
        streams: the training set is a stream.

    Raises:
        ModelError: CP301 and CP338 for a reference that cannot be read or does not fit.
    """
    if not LOSSES[args.loss_type].needs_reference:
        return
    if streams:
        yield find(
            "CP240",
            f"loss_type={args.loss_type} with a streamed data set.",
            fix="streaming: false",
        )
    named = reference_named(args.reference).source
    if args.reference != INITIAL and named == loaded_from(model):
        yield find(
            "CW240", f"reference={args.reference} is the model itself.", fix=f"reference: {INITIAL}"
        )
    check_reference(args, model, tokenizer if hasattr(tokenizer, "get_vocab") else None)
