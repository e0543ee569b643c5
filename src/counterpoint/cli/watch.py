"""``counterpoint watch``: a run's report in a browser while training goes on, or a table of runs.

Not here: the server and its page (``report.watching``), the table (``report.runs_table``).
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from counterpoint.cli.report import folders_of
from counterpoint.console.manners import put, say, table_width
from counterpoint.console.phases import on_stderr
from counterpoint.errors import ConfigError, SetupError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.report.runs_table import holds_runs, numbers_of, runs_table
from counterpoint.report.story import state_in_words
from counterpoint.runlog import METRICS, RUN_FILE, read_run

USAGE = """\
usage: counterpoint watch RUN [--port N]
       counterpoint watch FOLDER_OF_RUNS

Serves the report of a run to browsers on this machine, and brings what is new
into the open page while training goes on; where you have scrolled and zoomed
to stays. A terminal shows of how many steps it is, and the time left. Waits
for a run that has not begun. Ends with Ctrl-C. From another machine, forward
the port:

  ssh -L 8088:127.0.0.1:8088 MACHINE

Of a folder of runs it shows a table: the step of each, of how many, its loss,
its accuracy, the time left, and how it stands; in a pipe once.

Needs no torch; the report needs the package bokeh.

options:
"""

SECONDS_A_LOOK = 1.0
"""Between two looks at a folder in which no run has begun, or at the runs of one."""

AROUND = 3
"""Lines of a terminal that a table leaves free."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the command takes beside the run; every field's help is its meaning."""

    port: int = option(8088, "Port on 127.0.0.1, from 0 to 65535; 0 takes any that is free.")

    def __post_init__(self) -> None:
        """Refuse what is no port."""
        if not 0 <= self.port <= 65535:
            raise ConfigError("CP103", f"port={self.port} should be from 0 to 65535.")


COMMAND = Command("watch", USAGE, WatchOptions)


def watch(words: list[str]) -> None:
    """Serve the report of the run that a command line names, or show its runs, until Ctrl-C.

    Args:
        words: what follows ``counterpoint watch``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    [folder] = folders_of(others, "watch", most=1)
    try:
        _begun(folder)
        if (folder / RUN_FILE).exists():
            _serve(folder, options.port)
        else:
            _show(folder)
    except KeyboardInterrupt:
        say("ended")  # the usual way, and no failure


def _begun(folder: Path) -> None:
    """Wait until there is a run in a folder, or in one of its folders.

    Raises:
        SetupError: CP507 for a file.
    """
    told = False
    while not (folder / RUN_FILE).exists() and not holds_runs(folder):
        if folder.exists() and not folder.is_dir():
            raise SetupError("CP507", f"{folder} is a file; name the folder of a run.")
        if not told:
            from counterpoint.report.drawing import check_bokeh

            check_bokeh()  # rather than when the run begins
            what = "no run has begun there" if folder.is_dir() else "there is no such folder yet"
            say(f"waiting for {folder}: {what} (Ctrl-C ends it)")
            told = True
        time.sleep(SECONDS_A_LOOK)


def _serve(folder: Path, port: int) -> None:
    """Serve a run's page; a terminal shows how far it is."""
    from counterpoint.report.watching import server_of

    draw = on_stderr(say).draw
    looked = 0.0

    def look() -> None:
        nonlocal looked
        if draw is not None and time.monotonic() - looked >= SECONDS_A_LOOK:
            looked = time.monotonic()
            draw(_in_a_line(folder))

    server, address = server_of(folder, port, look)
    with server:
        say(f"{folder} at {address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        finally:
            if draw is not None:
                draw("")


def _in_a_line(folder: Path) -> str:
    """How a run stands: its state, its step, the time left, its loss and its accuracy."""
    try:
        run = read_run(folder, (METRICS,))
    except SetupError as error:  # until it is back
        return str(error)
    numbers = (f"{name} {value}" for name, value in numbers_of(run).items())
    return ", ".join([state_in_words(run), *numbers])


def _show(folder: Path) -> None:
    """Show the runs of a folder: in a pipe once, on a terminal until Ctrl-C."""
    if not sys.stdout.isatty():
        put("\n".join(runs_table(folder, table_width(), sys.maxsize)))
        return
    before = 0
    while True:
        lines = runs_table(folder, table_width() - 1, _rows())
        # over the table before, of which nothing is to be seen below
        lines += [""] * (before - len(lines))
        up = f"\x1b[{before}A" if before else ""
        sys.stdout.write(up + "".join(f"{line}\x1b[K\n" for line in lines))
        sys.stdout.flush()
        before = len(lines)
        time.sleep(SECONDS_A_LOOK)


def _rows() -> int:
    """Rows of a table that a terminal has room for."""
    return max(1, shutil.get_terminal_size((80, 24)).lines - AROUND)
