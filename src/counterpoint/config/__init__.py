"""The options of a run in Python: which there are, what they may be, and which are refused."""

from __future__ import annotations

from counterpoint.config.checks import INVALID_ROWS, RANGES, SAMPLING, TRUNCATIONS
from counterpoint.config.options import CPOConfig
from counterpoint.config.refused import REFUSED, is_refused

__all__ = [
    "INVALID_ROWS",
    "RANGES",
    "REFUSED",
    "SAMPLING",
    "TRUNCATIONS",
    "CPOConfig",
    "is_refused",
]
