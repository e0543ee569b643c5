"""A person at the other end: lines and single keys come in, an answer goes out piece by piece.

At a terminal lines can be edited, and a key needs no Enter. From a pipe or a file both are lines,
and nothing is prompted for, so that standard output holds the answers alone.

Not here: what is said (``cli.talk``).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from counterpoint.console.phases import wipe
from counterpoint.visible import visible

try:
    import termios
    import tty
except ImportError:  # not a POSIX system
    termios = tty = None  # type: ignore[assignment]

BLOCK = '"""'
"""Begins and ends a message of several lines."""

_GONE = ("", "\x04")
"""What a terminal gives that has ended: nothing, or Ctrl-D."""


class Person:
    """Whoever sits at standard input and output of this process."""

    def __init__(self) -> None:
        self.by_hand = sys.stdin.isatty() and sys.stdout.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            # a byte that is no UTF-8 becomes half a character, which whoever reads it can name
            sys.stdin.reconfigure(errors="surrogateescape")
        if self.by_hand:
            with contextlib.suppress(ImportError):  # lines can be edited once it is imported
                import readline  # noqa: F401

    def message(self, prompt: str) -> str | None:
        """A line, or several between marks; None at the end: Ctrl-D, Ctrl-C, or no more input.

        Args:
            prompt: shown at a terminal.
        """
        line = self._line(prompt)
        if line is None or not line.startswith(BLOCK):
            return line
        lines = [line.removeprefix(BLOCK)]
        while not lines[-1].endswith(BLOCK):
            more = self._line("... ")
            if more is None:
                break
            lines.append(more)
        return "\n".join(lines).removesuffix(BLOCK)

    def key(self, question: str, keys: Sequence[str]) -> str | None:
        """One of several keys; None at the end, as for ``message``.

        Args:
            question: shown at a terminal.
            keys: lower-case letters or digits.
        """
        while True:
            found = self._key(question) if self.by_hand and termios else self._line(question)
            if found is None or found.strip().lower() in keys:
                return found and found.strip().lower()
            self.note(f"{visible(found.strip())!r} is none of {', '.join(keys)}")

    def show(self, piece: str) -> None:
        """A piece of an answer, at once.

        Args:
            piece: what of it would command a terminal is shown as an escape.
        """
        if not piece:
            return
        wipe()
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(visible(piece).encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line about the chat, on standard error: it is no part of an answer."""
        wipe()
        sys.stderr.write(f"({visible(text)})\n")
        sys.stderr.flush()

    def _line(self, prompt: str) -> str | None:
        wipe()
        try:
            if self.by_hand:
                return input(prompt)
            line = sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            if self.by_hand:
                sys.stdout.write("\n")
            return None
        return line.removesuffix("\n").removesuffix("\r") if line else None

    def _key(self, question: str) -> str | None:
        wipe()
        try:
            with _key_by_key(sys.stdin.fileno()) as file:
                sys.stdout.write(question)
                sys.stdout.flush()
                found = os.read(file, 32).decode("utf-8", "replace")
        except KeyboardInterrupt:
            found = ""
        sys.stdout.write("\n" if found in _GONE else f"{visible(found)}\n")
        return None if found in _GONE else found


@contextmanager
def _key_by_key(file: int) -> Iterator[int]:
    """A terminal that gives each key without Enter; what was typed before the question is gone."""
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file, termios.TCSAFLUSH)
        yield file
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


class Stop:
    """Whether Ctrl-C was pressed while something was written; see ``stoppable``."""

    def __init__(self) -> None:
        self.pressed = 0
        self._breaks = False

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """What a second Ctrl-C breaks off, as a long pass through a model; nothing is raised."""
        self._breaks = True
        try:
            yield
        except KeyboardInterrupt:
            if not self.pressed:
                raise
        finally:
            self._breaks = False

    def press(self) -> None:
        """Ctrl-C was pressed.

        Raises:
            KeyboardInterrupt: the second time, where that breaks off something.
        """
        self.pressed += 1
        if self._breaks and self.pressed > 1:
            self._breaks = False
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within it the first Ctrl-C only asks to stop."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may be told of signals
        return

    def heed(number: int, frame: FrameType | None) -> None:
        stop.press()

    before: Any = signal.signal(signal.SIGINT, heed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
