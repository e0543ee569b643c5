"""The chance of one candidate: a number that follows from what it is of, and from nothing else.

Not here: what is drawn by it (``sampling``), or asked for with it (``cli.sample_served``).
"""

from __future__ import annotations

import hashlib


def chance_by(*of: object) -> int:
    """A number in [0, 2^63), the same on every machine and in every release.

    Args:
        of: what it is a function of: numbers, texts and tuples of them.
    """
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=8).digest(), "big") >> 1
