"""``counterpoint doctor``: what is wrong with a run, before it is one.

The options are those of ``counterpoint train``. Nothing is trained, and nothing is written but
the cache of prepared data sets.

Not here: what is looked for (``doctor.examine``), loading (``train``).
"""

from __future__ import annotations

from counterpoint.cli.train import consult
from counterpoint.console.manners import quiet_bars, say, table_width
from counterpoint.doctor.findings import Finding, Report, from_error
from counterpoint.errors import CounterpointError
from counterpoint.options.settings import read_request, read_what_can_be


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
    say(report.as_json() if as_json else report.as_table(table_width()))
    return report.exit_code


def _report(words: list[str]) -> Report:
    try:
        return consult(read_request(words))[0]
    except CounterpointError as error:
        # what the options are wrong about, and what can be seen without them
        rest = read_what_can_be(words)
        seen = () if rest is None else consult(rest)[0].findings
        return Report.of([from_error(error), *(one for one in seen if _without_options(one))])


def _without_options(finding: Finding) -> bool:
    """Whether a finding is so whatever the objective, the steps and the learning rate are."""
    return finding.code[2] != "1" and finding.code not in ("CW325", "CW326", "CN321")
