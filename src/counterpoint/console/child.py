"""Commands that this one runs as processes of their own: why one failed, and being told to end.

Not here: starting and waiting for them (``sweep.course``, ``loop.running``).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_CODED = re.compile(r"\bC[PWN]\d{3}\b.*")


def last_words(log: Path, code: int) -> str:
    """Why a process failed: its last line with a code of ours, or its last line.

    Args:
        log: what it said; need not be there.
        code: its exit code, below 0 for a signal.
    """
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    coded = (found[0] for line in reversed(lines) if (found := _CODED.search(line)))
    last = next((line for line in reversed(lines) if line.strip()), "")
    return next(coded, last.strip() or f"it ended with exit code {code}")


@contextmanager
def terminated_as(error: Callable[[int], BaseException]) -> Iterator[None]:
    """While open, SIGTERM raises, so that what was started can be ended first.

    Args:
        error: makes of the signal's number what is raised.
    """

    def ended(number: int, frame: FrameType | None) -> None:
        raise error(number)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
