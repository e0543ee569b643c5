"""``counterpoint report RUN``: what a run wrote, as one page to open in a browser.

Not here: what the page says (``report``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from counterpoint.console.manners import say
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError, SetupError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.runlog import REPORT_FILE, RUN_FILE, read_run

USAGE = """\
usage: counterpoint report RUN [--out FILE]

Writes one HTML file about a run: whether it is sound, what was trained, its
curves with the alarms on them, how far each layer moved, samples before and
after, speed, memory and environment. It opens offline and asks no network for
anything. RUN is the output_dir of a run; it may still be running. Needs no
torch; needs the package bokeh.

examples:
  counterpoint report runs/first
  counterpoint report runs/first --out first.html

options:
"""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What the command takes beside the run; every field's help is its meaning."""

    out: str | None = option(None, f"File to write. null: {REPORT_FILE} in the run's folder.")


COMMAND = Command("report", USAGE, ReportOptions)


def report(words: list[str]) -> None:
    """Write the report of the run that a command line names.

    Args:
        words: what follows ``counterpoint report``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    options, others = COMMAND.read(words)
    [folder] = runs_of(others, "report", most=1)
    from counterpoint.report.run_report import report_html as html_of
    from counterpoint.report.writing import refuse_other_file, write_page

    path = folder / REPORT_FILE if options.out is None else Path(options.out)
    run = read_run(folder)
    refuse_other_file(path)
    with phase("drawing the report"):
        size = write_page(path, html_of(run))
    say(f"report in {path} ({size / 1e6:.1f} MB)")


def runs_of(
    words: list[str], command: str, *, least: int = 1, most: int | None = None
) -> list[Path]:
    """The folders of runs that a command line names; as ``folders_of``.

    Raises:
        ConfigError: CP103 for too many folders, CP107 for too few.
        SetupError: CP507 for a folder that holds no run, but whose folders do.
    """
    folders = folders_of(words, command, least=least, most=most)
    for folder in folders:
        within = sorted(str(path.parent) for path in folder.glob(f"*/{RUN_FILE}"))
        if within and not (folder / RUN_FILE).exists():
            there = " and ".join(within[:3])
            raise SetupError("CP507", f"{folder} itself holds no run; look at {there}.")
    return folders


def folders_of(
    words: list[str], command: str, *, least: int = 1, most: int | None = None
) -> list[Path]:
    """The folders that a command line names.

    Args:
        words: of the command line, without the flags that were read.
        command: its name.
        least: folders that are needed.
        most: folders that are taken; None takes any number.

    Raises:
        ConfigError: CP103 for too many folders, CP107 for too few.
    """
    if len(words) < least:
        wanted = "the folder of a run" if least == 1 else f"the folders of {least} runs or more"
        raise ConfigError("CP107", f"counterpoint {command} needs {wanted}, its output_dir.")
    if most is not None and len(words) > most:
        raise ConfigError("CP103", f"counterpoint {command} takes one run, not {' '.join(words)}.")
    return [Path(word) for word in words]
