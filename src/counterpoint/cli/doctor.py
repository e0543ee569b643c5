"""``counterpoint doctor``: what is wrong with a run, before it is one.

The options are those of ``counterpoint train``. Nothing is trained, and nothing is written but
the cache of prepared data sets.

Not here: what is looked for (``doctor.examine``), loading (``train``).
"""

from __future__ import annotations

import sys

from counterpoint.cli.manners import quiet_bars, terminal_width
from counterpoint.cli.settings import read_request
from counterpoint.cli.train import consult
from counterpoint.doctor.findings import Report, from_error
from counterpoint.errors import CounterpointError


def doctor(words: list[str], *, as_json: bool) -> int:
    """Examine the run that the words describe, and say what was found on standard output.

    Args:
        words: of a command line, as for ``counterpoint train``.
        as_json: for machines, and not as a table.

    Returns:
        0 where nothing is wrong, 1 with warnings, 2 with errors.
    """
    quiet_bars()
    report = _report(words)
    sys.stdout.write(report.as_json() if as_json else report.as_table(terminal_width()))
    sys.stdout.write("\n")
    return report.exit_code


def _report(words: list[str]) -> Report:
    try:
        request = read_request(words)
    except CounterpointError as error:
        # without options that can be meant there is no run to look at
        return Report.of([from_error(error)])
    return consult(request)[0]
