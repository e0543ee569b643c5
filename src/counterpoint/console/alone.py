"""A small run inside another program: on one core, and without the libraries' voices.

Not here: what such a run shows instead (``quickstart``, ``smoke``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
from transformers.utils import logging as transformers_logging


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: with so small a model a second mostly waits, on a busy machine long.

    It also makes the numbers independent of how many cores there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """No bars of the libraries, and little of Counterpoint's own log.

    Args:
        level: of ``logging``, from which on the log still speaks.
    """
    logger = logging.getLogger("counterpoint")
    before = logger.level
    bars = (transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled())
    logger.setLevel(level)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if not bars[1]:
            datasets.enable_progress_bars()
