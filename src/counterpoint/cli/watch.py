"""``counterpoint watch RUN``: the run's report in a browser, kept fresh while training goes on.

Not here: the server and its page (``report.watching``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from counterpoint.cli.flags import flags_help, flags_of, take_flags
from counterpoint.cli.manners import say
from counterpoint.cli.report import runs_of
from counterpoint.errors import ConfigError

USAGE = """\
usage: counterpoint watch RUN [--port N]

Serves the report of a run to browsers on this machine, and brings what is new
into the open page while training goes on; where you have scrolled and zoomed
to stays. Ends with Ctrl-C. From another machine, forward the port:

  ssh -L 8088:127.0.0.1:8088 MACHINE

Needs no torch; needs the package bokeh.

options:
"""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the command takes beside the run; every field's help is its meaning."""

    port: int = field(
        default=8088,
        metadata={"help": "Port on 127.0.0.1, from 0 to 65535; 0 takes any that is free."},
    )

    def __post_init__(self) -> None:
        """Refuse what is no port."""
        if not 0 <= self.port <= 65535:
            raise ConfigError("CP103", f"port={self.port} should be from 0 to 65535.")


def watch_help(width: int | None = None) -> str:
    """The text of ``counterpoint watch --help``."""
    return f"{USAGE}{flags_help(flags_of(WatchOptions), width)}\n"


def watch(words: list[str]) -> None:
    """Serve the report of the run that a command line names, until Ctrl-C.

    Args:
        words: what follows ``counterpoint watch``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    flags = flags_of(WatchOptions)
    values, others = take_flags(words, flags)
    [folder] = runs_of(others, flags, "watch", most=1)
    options = WatchOptions(**values)
    from counterpoint.report.watching import server_of

    server, address = server_of(folder, options.port)
    try:
        with server:
            say(f"{folder} at {address} (Ctrl-C ends it)")
            server.serve_forever()
    except KeyboardInterrupt:
        say("ended")  # the usual way, and no failure
