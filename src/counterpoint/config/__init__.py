"""The options of a run in Python: which there are, what they may be, and which are refused."""

from __future__ import annotations

from counterpoint.config.checks import RANGES, SAMPLING, TRUNCATIONS
from counterpoint.config.options import CPOConfig
from counterpoint.config.refused import REFUSED, is_refused
from counterpoint.config.step_size import accumulation_for, pairs_on

__all__ = [
    "RANGES",
    "REFUSED",
    "SAMPLING",
    "TRUNCATIONS",
    "CPOConfig",
    "accumulation_for",
    "is_refused",
    "pairs_on",
]
