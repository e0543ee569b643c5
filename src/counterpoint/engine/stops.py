"""What ends a run for no fault of its own has a code, wherever it is noticed.

That is another rank that is gone, and memory that runs out where no micro-batch is to blame.

Not here: what is known for either (``lost_rank``, ``memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from counterpoint.engine.lost_rank import lost_rank_named
from counterpoint.engine.memory import memory_named

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def stops_named(folder: str) -> Iterator[None]:
    """Raise errors with a code in place of what libraries say.

    Args:
        folder: of the run, for the message.

    Raises:
        TrainingError: CP404 where another rank has gone.
        SetupError: CP522 where memory ran out.
    """
    with lost_rank_named(folder), memory_named(folder):
        yield


def names_stops(method: Method) -> Method:
    """The same around a method of a trainer, which knows its folder.

    Args:
        method: in which ranks meet.
    """

    @wraps(method)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        with stops_named(self.args.output_dir):
            return method(self, *args, **kwargs)

    return named  # type: ignore[return-value]
