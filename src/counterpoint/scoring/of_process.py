"""A process of its own as a scorer: JSON lines in, JSON lines out.

This is how a metric is used whose packages do not fit beside ours (COMET, MetricX). The process is
started once. A thread writes every candidate that is left, and the process answers in its own time,
one line each, in order: a number, null, or an object with ``score``.

Not here: what becomes of an answer that is no number (``scorer.checked``).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any

from counterpoint.errors import ConfigError, ModelError, SetupError, first_line
from counterpoint.scoring.entries import CandidateEntry
from counterpoint.scoring.scorer import Scorer, ScoringWork
from counterpoint.strict import strict_json

SECONDS_TO_END = 10.0
"""That a process is given to end by itself once everything is answered."""

WAITING = 1_000
"""Answers that may wait to be taken."""


class OwnProcess(Scorer):
    """Starts a command and asks it for a number a row.

    Args:
        command: its words, as a shell would split them; no shell runs.
        timeout: seconds that it may take for an answer; None: any.

    Raises:
        ConfigError: CP103 for words that cannot be split.
    """

    def __init__(self, command: str, timeout: float | None = None) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError("CP103", f"command:{command}: {first_line(error)}.") from error
        if not self._words:
            raise ConfigError("CP103", "command: names no command.")
        self._command, self._timeout = command, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: Queue[bytes | None] = Queue(WAITING)
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failed = False

    def begin(self, work: ScoringWork) -> None:
        """Start it.

        Raises:
            SetupError: CP502 where there is no such command.
        """
        try:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise SetupError(
                "CP502", f"{self._words[0]} cannot be started: {first_line(error)}"
            ) from error
        for task in (lambda: self._feed(work), self._collect):
            self._threads.append(threading.Thread(target=task, daemon=True))
            self._threads[-1].start()

    def score(self, entries: Sequence[CandidateEntry]) -> list[Any]:
        """The next answers.

        Raises:
            ModelError: CP347 for a process that ends too early, answers no JSON, or takes too long.
        """
        self._failed = True  # until every one of them is answered
        found = [self._answer(entry) for entry in entries]
        self._failed = False
        return found

    def close(self) -> None:
        """End it: gently where everything was answered."""
        self._stopped.set()
        process = self._process
        if process is None:
            return
        try:
            process.wait(0 if self._failed else SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what it did not read is of no use
                    stream.close()

    def _answer(self, entry: CandidateEntry) -> Any:
        try:
            line = self._answers.get(timeout=self._timeout)
        except Empty:
            line, why = None, f"no answer within {self._timeout:g} seconds"
        else:
            why = "" if line is not None else self._end()
        if line is None:
            raise ModelError("CP347", f"{self._command}, {entry.place}: {why}.")
        try:
            found = json.loads(line)
        except ValueError as error:
            shown = line.decode(errors="replace").strip()[:60]
            raise ModelError(
                "CP347",
                f"{self._command}, {entry.place}: answered {shown!r}; expected a number, null or "
                '{"score": number} a line. What it says to people belongs on standard error.',
            ) from error
        return found.get("score", str(found)) if isinstance(found, dict) else found

    def _end(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return f"it ended before it answered, with exit code {code}"

    def _feed(self, work: ScoringWork) -> None:
        assert self._process is not None
        stream = self._process.stdin
        assert stream is not None
        try:
            for entry in work.rest():
                if self._stopped.is_set():
                    break
                stream.write(f"{strict_json(entry.row, ensure_ascii=False)}\n".encode())
            stream.close()
        except (OSError, ValueError):  # it is gone, which whoever waits for its answer will say
            return

    def _collect(self) -> None:
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        for line in stream:
            self._put(line)
        self._put(None)

    def _put(self, answer: bytes | None) -> None:
        while not self._stopped.is_set():
            try:
                self._answers.put(answer, timeout=0.2)
            except Full:  # whoever takes them is busy
                continue
            return
