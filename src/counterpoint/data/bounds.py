"""What a stranger's template may take: so much of the processor, so much memory, and no more.

A chat template is a program that comes with a model. transformers runs it in a sandbox, out of
which it cannot reach; but it may loop for hours, or double a text until memory is gone.

1. Time is counted while this thread computes, so that neither a busy or sleeping machine nor
   other threads of this process change anything.
2. Where the system has no such clock or limit (Windows; for memory macOS too), and in threads
   other than the main one, nothing is bounded.

A tokenizer's native code is not interrupted before it returns. Where it gives up by itself (a
regular expression that was made to be slow is cut short there), it raises what no ``except
Exception`` catches; ``panics_caught`` makes an error of that.

Not here: what becomes of any of it (``chat``, ``tokenize``).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MOST_MEMORY = 2 * 2**30
"""Bytes that rendering a batch of rows may add to what the process has."""

SHORTEST_TIMER = 0.001
"""Seconds; a timer of 0 would never ring."""

_PAGES = Path("/proc/self/statm")


class OutOfTime(BaseException):
    """What was bounded took longer than it may; no ``except Exception`` on the way swallows it."""


@contextmanager
def bounded_time(seconds: float) -> Iterator[None]:
    """Stop what takes more of the processor's time.

    Args:
        seconds: of this thread's computing, above 0.

    Raises:
        OutOfTime: from wherever the work was.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    started = time.thread_time()

    def stop(number: int, frame: FrameType | None) -> None:
        # the timer counts what all threads of the process compute
        left = seconds - (time.thread_time() - started)
        if left <= 0:
            raise OutOfTime
        signal.setitimer(signal.ITIMER_VIRTUAL, max(left, SHORTEST_TIMER))

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Panic(Exception):
    """Native code of a library gave up."""


@contextmanager
def panics_caught() -> Iterator[None]:
    """Raise ``Panic`` where Rust code panics: as it comes, it is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Panic(str(error)) from error


class _AddressSpace:
    """The limit of the process, lowered as long as anybody needs it lowered.

    Two threads that each put back what they found would leave the lower limit for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = (0, 0)

    def lower(self, more: int) -> None:
        """Leave so many bytes beyond what the process has now, unless it is lowered already."""
        with self._lock:
            self._holders += 1
            if self._holders > 1:
                return
            now = int(_PAGES.read_text().split()[0]) * resource.getpagesize()
            self._before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            unlimited = resource.RLIM_INFINITY
            bound = min(limit for limit in (now + more, soft, hard) if limit != unlimited)
            resource.setrlimit(resource.RLIMIT_AS, (bound, hard))

    def restore(self) -> None:
        """The last one to leave puts back what the first one found."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                resource.setrlimit(resource.RLIMIT_AS, self._before)


_ADDRESS_SPACE = _AddressSpace()


@contextmanager
def bounded_memory(more: int = MOST_MEMORY) -> Iterator[None]:
    """Let allocations beyond a bound fail with ``MemoryError``.

    Args:
        more: bytes, beyond the address space that the process has now; of several threads that
            of the first one counts.
    """
    if resource is None or not _PAGES.exists():
        yield
        return
    _ADDRESS_SPACE.lower(more)
    try:
        yield
    finally:
        _ADDRESS_SPACE.restore()
