"""Another rank is gone: what the libraries say of it becomes one error with a code.

A rank that dies is noticed by the others in their next exchange: on gloo at once, since its
connections close; on NCCL where its watchdog ends them, or earlier by the launcher, which ends
all ranks when one fails.

Not here: noticing it, starting the ranks again (``torchrun --max-restarts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from counterpoint import ranks
from counterpoint.errors import CounterpointError, TrainingError, first_line

SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "timed out waiting",
    "watchdog caught collective operation timeout",
    "ncclremoteerror",
    "nccl communicator was aborted",
    "failed to recv",
    "failed to send",
)
"""What gloo, NCCL and the store of torch.distributed say of a peer that is gone, in lower case."""


_PLACE = re.compile(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ")
"""Where in a library's source an error was raised, which helps nobody here."""


@contextmanager
def lost_rank_named(folder: str) -> Iterator[None]:
    """Raise CP404 in place of what a library says when another rank has gone.

    Args:
        folder: of the run, for the message.

    Raises:
        TrainingError: CP404.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CounterpointError) or not is_lost_rank(error):
            raise
        line = _PLACE.sub("", first_line(error))
        raise TrainingError(
            "CP404",
            f"rank {ranks.rank()} of {ranks.count()} stops: another rank of the run is "
            f"gone ({line[:100]}). Its own last lines, or the system's log, say why; what is saved "
            f"is in {folder}.",
        ) from error


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error comes of another rank that is gone."""
    text = str(error).lower()
    return ranks.raised_between_ranks(error) and any(sign in text for sign in SIGNS)
