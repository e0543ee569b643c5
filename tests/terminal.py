"""A terminal for tests: a pseudo-terminal to write to, and what its screen shows then."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
import threading
from types import TracebackType
from typing import TextIO

_PIECE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)", re.DOTALL)


class Terminal:
    """A pseudo-terminal of some columns, read as fast as it is written."""

    def __init__(self, columns: int) -> None:
        self._master, self._slave = os.openpty()
        self.resize(columns)
        self.stream: TextIO = os.fdopen(self._slave, "w", 1, encoding="utf-8", closefd=False)
        self._bytes = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Terminal:
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def resize(self, columns: int) -> None:
        self.columns = columns
        size = struct.pack("HHHH", 40, columns, 0, 0)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, size)

    def shown(self) -> str:
        """Everything that was written; ends the terminal."""
        self._close()
        return self._bytes.decode("utf-8")

    def _close(self) -> None:
        if not self.stream.closed:
            self.stream.close()
            os.close(self._slave)
            self._reader.join(10)
            os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not found:
                return
            self._bytes += found


class Screen:
    """What a terminal shows after all of that; knows what a progress bar needs."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.cursor_hidden = False
        self._row = self._column = 0

    def feed(self, text: str) -> Screen:
        for code, kind, back, down, words in _PIECE.findall(text):
            if back:
                self._column = 0
            elif down:
                self._down()
            elif words:
                for letter in words:
                    self._put(letter)
            elif kind == "A":
                self._row = max(0, self._row - int(code or 1))
            elif kind == "K":
                row = self.rows[self._row]
                self.rows[self._row] = [] if code == "2" else row[: self._column]
            elif code == "?25":
                self.cursor_hidden = kind == "l"
            elif kind != "m":
                msg = f"unknown sequence {code}{kind}"
                raise ValueError(msg)
        return self

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append([])

    def _put(self, letter: str) -> None:
        if self._column == self.columns:
            self._column = 0
            self._down()
        row = self.rows[self._row]
        row.extend(" " * (self._column + 1 - len(row)))
        row[self._column] = letter
        self._column += 1
