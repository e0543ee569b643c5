"""The logger of what a run says to people, and how its lines reach standard error.

1. On a terminal a line is folded at words; elsewhere it stays one line, which a program can read.
2. A bar of tqdm makes room and is drawn again below the line, as for ``tqdm.write``.
3. Commands are written as they have to be called here.

Not here: what a run writes (``runlog``); the voices of the libraries that compute, but for
those that speak when they are loaded (``quiet_imports``).
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from counterpoint.invocation import runnable
from counterpoint.masking import MaskingFilter
from counterpoint.wrap import width_of, wrap

NARROWEST = 20
"""Columns below which folding helps nobody."""

LOADED = ("torchao", "torch.utils._pytree")
"""Loggers that say, as they are loaded, what concerns nobody who trains on this machine."""


CALLED = ("transformers.generation.configuration_utils",)
"""Loggers that say of a model's files, as it is loaded, what changes nothing here."""


_MASKING = MaskingFilter()


def logger() -> logging.Logger:
    """The logger of what a run says to people; shows INFO on stderr unless set up otherwise."""
    log = logging.getLogger("counterpoint")
    if not log.handlers and not logging.getLogger().handlers:
        handler = LogHandler()
        handler.addFilter(_MASKING)  # a logger's filter does not see what its children say
        log.addHandler(handler)
    log.addFilter(_MASKING)
    if log.level == logging.NOTSET:
        # of several ranks one speaks; all of them warn
        first = os.environ.get("RANK", "0") == "0"
        log.setLevel(logging.INFO if first else logging.WARNING)
    return log


class LogHandler(logging.StreamHandler[Any]):
    """Writes the log of a run to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, between the bars."""
        with _bars_aside(self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record, folded at the width of a terminal."""
        text = runnable(super().format(record))
        width = width_of(self.stream)
        if width is None:
            return text
        room = max(NARROWEST, width)
        return "\n".join(part for line in text.splitlines() for part in wrap(line, room, "", "  "))


def _bars_aside(stream: Any) -> AbstractContextManager[object]:
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # nobody loads it for this
    if tqdm is None:
        return nullcontext()
    aside: AbstractContextManager[object] = tqdm.external_write_mode(file=stream)
    return aside


class _Errors(logging.Filter):
    """Lets errors pass alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


def quiet_imports() -> AbstractContextManager[None]:
    """Within it libraries that are loaded say nothing below an error."""
    return _errors_alone(LOADED)


@contextmanager
def quiet_calls() -> Iterator[None]:
    """Within it nothing is heard of what one library finds deprecated in another.

    Nor of sampling values in a model's own files, which nothing here goes by and which are saved as
    they are. To be put around a call of a library and nothing more.
    """
    with warnings.catch_warnings(), _errors_alone(CALLED):
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _errors_alone(names: Sequence[str]) -> Iterator[None]:
    loggers, errors = [logging.getLogger(name) for name in names], _Errors()
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(errors)  # torch sets its levels anew as it is loaded, and no filter
        logger.setLevel(logging.ERROR)  # which those below it inherit, unlike the filter
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeFilter(errors)
            logger.setLevel(level)
