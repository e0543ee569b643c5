"""What is being done, and how far it is, for whatever takes longer than two seconds.

    with phase("writing samples", 16, "prompts") as now:
        ...
        now.advance(4)

On a terminal it is one line, drawn anew as time goes on and wiped when the phase is over; in a log
a line after two seconds, and then ever more seldom. Of several ranks the first one tells.

A thread tells it. Most phases are one call of a library (weights are read, a checkpoint is
written), in which nobody else could look at the clock. It lives while a phase is open, and no
process is forked while it writes, so that no worker inherits a lock that nobody opens. Fork before
a phase all the same: Python warns of a fork beside a thread.

Not here: the steps and the numbers of a training (``display``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from rich.cells import cell_len, set_cell_size

from counterpoint.log import logger
from counterpoint.masking import masked
from counterpoint.visible import visible
from counterpoint.wrap import width_of

AFTER = 2.0
"""Seconds that pass before a phase is told of."""

SELDOM = 3
"""How many times as late as the line before it the next line of a log comes."""

SECONDS_A_DRAW = 0.5

LONGEST_WAIT = 3600.0

WIDTH = 80
"""Columns of what does not say how many it has."""

Draw = Callable[[str], None]
"""Shows a text in the place of the one before; "" wipes it."""


@dataclass(slots=True)
class Phase:
    """A phase that is open.

    Args:
        name: what is done, as in "writing samples".
        total: how many of ``unit`` there are; None where that is not known.
        unit: what is counted, in the plural; "" where nothing is.
        done: how many are done.
        since: when it began, in seconds of ``time.monotonic``.
        due: when it is told of next in a log.
        told: whether a log has told of it.
    """

    name: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    since: float = field(default_factory=time.monotonic)
    due: float = 0.0
    told: bool = False

    def __post_init__(self) -> None:
        """Names may hold those of files, and so anything."""
        self.name = " ".join(visible(masked(self.name)).split())
        self.due = self.since + AFTER

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def text(self, now: float) -> str:
        """The name, how far it is, and the time that it has taken."""
        took = now - self.since
        parts = [self.name]
        if self.total:
            of = "/" if not self.unit else " of "
            parts.append(f"{self.done:,}{of}{self.total:,} {self.unit}".rstrip())
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}")
        parts.append(clock(took))
        if self.total and 0 < self.done < self.total:
            parts.append(f"about {clock(took / self.done * (self.total - self.done))} left")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where phases are told of.

    Args:
        draw: on a screen; None where there is none, so that lines are written.
        write: a line of a log.
    """

    draw: Draw | None
    write: Callable[[str], None]


class _Teller:
    """The phases that are open, the innermost last, and the thread that tells of it."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.outlets: list[Outlet] = []
        self.bars = True
        self._open: list[tuple[Phase, Outlet]] = []
        self._drawn: Draw | None = None
        self._thread: threading.Thread | None = None

    def enter(self, one: Phase, outlet: Outlet) -> None:
        with self.lock:
            self._open.append((one, outlet))
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell, name="phases", daemon=True)
                self._thread.start()

    def leave(self, one: Phase, outlet: Outlet) -> None:
        with self.lock:
            self._open = [each for each in self._open if each[0] is not one]
            self.wipe()
            if one.told:
                outlet.write(f"{one.name}: done in {clock(time.monotonic() - one.since)}")
            self.lock.notify()

    def wipe(self) -> None:
        """Take what is drawn off the screen, for something else to be written there."""
        with self.lock:
            draw, self._drawn = self._drawn, None
            if draw is not None:
                draw("")

    def _tell(self) -> None:
        with self.lock:
            while self._open:
                self.lock.wait(min(self._told(), LONGEST_WAIT))
            self._thread = None

    def _told(self) -> float:
        """Tell of the innermost phase if it is time; the seconds until it may be again."""
        (one, outlet), now = self._open[-1], time.monotonic()
        if now - one.since < AFTER:
            return one.since + AFTER - now
        if outlet.draw is not None:
            if self._drawn is not outlet.draw:
                self.wipe()
            self._drawn = outlet.draw
            outlet.draw(one.text(now))
            return SECONDS_A_DRAW
        if now >= one.due:
            one.due, one.told = one.since + SELDOM * (now - one.since), True
            outlet.write(one.text(now))
        return one.due - now


_teller = _Teller()


def _afresh() -> None:
    """A forked process has neither the thread nor the phases of its parent."""
    global _teller
    _teller = _Teller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _teller.lock.acquire(),
        after_in_parent=lambda: _teller.lock.release(),
        after_in_child=_afresh,
    )


@contextmanager
def phase(name: str, total: int | None = None, unit: str = "") -> Iterator[Phase]:
    """Tell of what is done within, once it has taken two seconds.

    Args:
        name: what is done, as in "writing samples"; secrets in it are left out.
        total: how many of ``unit`` there are; None where that is not known.
        unit: what ``advance`` counts, in the plural; "" where nothing is counted.

    Yields:
        The phase, to be advanced.
    """
    one, teller = Phase(name, total, unit), _teller
    outlet = _outlet(teller)
    if outlet is None:
        yield one
        return
    teller.enter(one, outlet)
    try:
        yield one
    finally:
        teller.leave(one, outlet)


@contextmanager
def shown_on(outlet: Outlet) -> Iterator[None]:
    """Within it phases are told of there, also where the log says nothing of them."""
    place(outlet)
    try:
        yield
    finally:
        displace(outlet)


def place(outlet: Outlet) -> None:
    """From now on phases are told of there."""
    wipe()
    _teller.outlets.append(outlet)


def displace(outlet: Outlet) -> None:
    """They are told of where they were before."""
    wipe()
    _teller.outlets = [one for one in _teller.outlets if one is not outlet]


def allow_bars(allowed: bool) -> None:
    """Whether a terminal shows a line that is drawn anew, or the lines of a log.

    Args:
        allowed: no for ``disable_tqdm``.
    """
    wipe()
    _teller.bars = allowed


def wipe() -> None:
    """Take what is drawn off the screen, for something else to be written there."""
    _teller.wipe()


def on_stderr(write: Callable[[str], None]) -> Outlet:
    """Standard error: a line that is drawn anew on a terminal, else lines.

    Args:
        write: writes a line.
    """
    stream = sys.stderr
    live = _teller.bars and stream.isatty() and os.environ.get("TERM") != "dumb"
    return Outlet(_Line(stream) if live else None, write)


def clock(seconds: float) -> str:
    """Seconds as people read them on a clock: 0:07, 12:34, 1:00:00."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stream_columns(stream: IO[str]) -> int:
    """Columns of the terminal that a stream is, at least 20; 80 where it is none."""
    return max(20, width_of(stream) or WIDTH)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a terminal, below all others; whatever is written next begins where it began."""

    stream: IO[str]

    def __call__(self, text: str) -> None:
        room = stream_columns(self.stream) - 1
        code = getattr(self.stream, "encoding", None) or "utf-8"
        plain = text.encode(code, "replace").decode(code)
        if cell_len(plain) > room:
            plain = f"{set_cell_size(plain, room - 3)}..."
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed
            self.stream.write(f"\r{set_cell_size(plain, room)}\r")
            self.stream.flush()


class _Wiping(logging.Filter):
    """Has the line of a phase make room for a line of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        wipe()
        return True


_WIPING = _Wiping()


def _outlet(teller: _Teller) -> Outlet | None:
    """Where a phase is told of; None where nobody is to hear of it."""
    if teller.outlets:
        return teller.outlets[-1]
    log = logger()
    if not log.isEnabledFor(logging.INFO):
        return None
    log.addFilter(_WIPING)
    return on_stderr(log.info)
