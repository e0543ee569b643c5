"""How the command speaks: one line for an error, no secret, nothing from the libraries below it.

Control characters are shown, and never sent.

Not here: what the run itself says (``log.logger``) and the exit codes (``cli.main``).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from counterpoint.console.phases import phase, wipe
from counterpoint.invocation import runnable
from counterpoint.masking import masked
from counterpoint.visible import visible
from counterpoint.wrap import width_of, wrap

CHATTY = (
    "transformers",
    "datasets",
    "huggingface_hub",
    "accelerate",
    "peft",
    "torch",
    "torch.utils._pytree",
    "torchao",
    "bitsandbytes",  # of CPUs with bfloat16, that it lacks a package, as it is imported
    "httpx",
    "httpx2",
)
WIDEST = 110
"""Columns beyond which lines are hard to read."""

ENDLESS = 10**6
"""Columns of what no terminal folds."""

NARROWEST = 20
"""Columns below which folding helps nobody."""

_VERBOSITY = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_LOGS": "-all",  # torch sets its loggers' levels anew when it is imported
}


def shown(text: str) -> str:
    """A text as it may be sent to a terminal, a pipe or a file."""
    return visible(masked(text))


def say(text: str = "") -> None:
    """One line for the user, on standard output, from the first process only."""
    if is_first_process():
        put(text)


def importing() -> AbstractContextManager[object]:
    """Tell of the libraries that compute, which take seconds to load."""
    return phase("loading the libraries")


def put(text: str) -> None:
    """Text on standard output; characters that it cannot show are spelt out."""
    wipe()
    encoding = sys.stdout.encoding or "utf-8"
    line = f"{shown(text)}\n"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on standard error, whatever line breaks ``text`` has; names the rank if any.

    On a terminal it is folded at words; elsewhere it stays one line, which a program can read.
    """
    rank = f" [rank {os.environ['RANK']}]" if "RANK" in os.environ else ""
    line = f"counterpoint{rank}: {' '.join(runnable(shown(text)).split())}"
    width = width_of(sys.stderr)
    wipe()
    lines = [line] if width is None else wrap(line, max(NARROWEST, width), "", "  ")
    sys.stderr.write("".join(f"{one}\n" for one in lines))
    sys.stderr.flush()


def complain_all(text: str) -> None:
    """Several lines on standard error, as they are, from the first process only."""
    if is_first_process():
        wipe()
        sys.stderr.write(f"{runnable(shown(text))}\n")
        sys.stderr.flush()


def terminal_width() -> int:
    """Columns of the terminal, at most ``WIDEST``; 80 where there is none."""
    return min(shutil.get_terminal_size((80, 24)).columns, WIDEST)


def table_width() -> int:
    """Columns of a table on standard output: at most ``WIDEST``; of a pipe, without an end."""
    width = width_of(sys.stdout)
    return ENDLESS if width is None else min(width, WIDEST)


def is_first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def has_terminal() -> bool:
    """Whether a progress bar would be seen."""
    return sys.stderr.isatty()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' warnings and their log lines below an error off the screen.

    Errors still come through, and so do levels that the user's environment asks for.
    """
    # A library that is not imported yet reads its level from the environment when it is.
    unset = {name: level for name, level in _VERBOSITY.items() if name not in os.environ}
    os.environ.update(unset)
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quiet_bars() -> None:
    """No progress bars of libraries where nobody would see them move."""
    if has_terminal():
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def quiet_replicas() -> None:
    """Let the first process alone tell of the run; the others still warn."""
    if not is_first_process():
        logging.getLogger("counterpoint").setLevel(logging.WARNING)
