"""How many trials a test of reliability makes: few in CI, all of them in ``make torture``."""

from __future__ import annotations

import os

TORTURE = os.environ.get("COUNTERPOINT_TORTURE", "0") not in ("", "0")
"""Whether the long form was asked for."""


def trials(few: int, all_of_them: int) -> int:
    """The number of trials, in CI and in full."""
    return all_of_them if TORTURE else few
