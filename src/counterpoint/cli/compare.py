"""``counterpoint compare RUN RUN ...``: how runs differ, and their curves over each other.

Not here: what the page says (``report.comparison``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from counterpoint.cli.report import runs_of
from counterpoint.console.manners import say
from counterpoint.console.phases import phase
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.runlog import read_run

USAGE = """\
usage: counterpoint compare RUN RUN ... [--out FILE]

Writes one HTML file about several runs: first what differs between them (the
objective, options, data, machine), then their last values with the best one
marked, then their curves laid over each other, over steps, pairs or hours. It
opens offline. Needs no torch; needs the package bokeh.

examples:
  counterpoint compare runs/first runs/second
  counterpoint compare runs/* --out all.html

options:
"""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What the command takes beside the runs; every field's help is its meaning."""

    out: str = option("comparison.html", "File to write.")


COMMAND = Command("compare", USAGE, CompareOptions)


def compare(words: list[str]) -> None:
    """Write the comparison of the runs that a command line names.

    Args:
        words: what follows ``counterpoint compare``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    folders = runs_of(others, "compare", least=2)
    from counterpoint.report.comparison import comparison
    from counterpoint.report.writing import refuse_other_file, write_page

    path = Path(options.out)
    runs = [read_run(folder) for folder in folders]
    refuse_other_file(path)
    with phase("drawing the comparison"):
        size = write_page(path, comparison(runs))
    say(f"comparison in {path} ({size / 1e6:.1f} MB)")
