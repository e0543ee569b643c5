"""The bars of ``datasets``, which are not shown where a run tells how far it is itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import datasets


@contextlib.contextmanager
def progress_bars_off() -> Iterator[None]:
    """While open, ``datasets`` draws no bar."""
    if not datasets.is_progress_bar_enabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
