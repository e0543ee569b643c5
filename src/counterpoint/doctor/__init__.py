"""The doctor: what is wrong with a run before its first step, all of it at once.

    options, tokenizer, model, data, machine ──of_*──▶ Finding ... ──examine──▶ Report

Every check is a function from facts to findings; none trains, none writes, none stops another.
``examine`` is loaded when first used, so that a code is explained without waiting for torch.

Not here: what rows, options and models mean (their rooms), and what memory a step needs
(``planner``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.doctor.examination import examine
    from counterpoint.doctor.findings import Finding, Report

__all__ = ["Finding", "Report", "examine"]

_HOMES = {
    "Finding": "counterpoint.doctor.findings",
    "Report": "counterpoint.doctor.findings",
    "examine": "counterpoint.doctor.examination",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        msg = f"module 'counterpoint.doctor' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)
