"""``counterpoint doctor``: what is wrong with a run, before it is one.

The options are those of ``counterpoint train``. Nothing is trained, and nothing is written but
the cache of prepared data sets.

Not here: what is looked for (``doctor.examine``), loading (``train``).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from counterpoint.console.manners import (
    importing,
    put,
    quiet_bars,
    say,
    table_width,
    terminal_width,
)
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.options.command import Command
from counterpoint.options.declared import option

if TYPE_CHECKING:
    from counterpoint.doctor.findings import Finding, Report

USAGE = """\
usage: counterpoint doctor [CONFIG.yaml] [--option value ...] [--json]
       counterpoint doctor --explain CODE

Looks at options, data, tokenizer, model and machine together, before anything is trained, and
says everything that it finds: errors, which training refuses, warnings, and notes. The options
are those of counterpoint train; counterpoint train --help lists them. counterpoint train does
the same first, unless --doctor off.

exit codes:
  0    nothing but notes
  1    warnings
  2    errors

options beside those of train:
"""


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What the command takes beside ``train``'s options; every field's help is its meaning."""

    json: bool = option(False, "Findings as JSON.")
    explain: str | None = option(
        None, "Say what a code means, why it hurts, and what to do; see also docs/diagnoses.md."
    )


COMMAND = Command("doctor", USAGE, DoctorOptions, of_train=True)


def doctor(words: list[str]) -> int:
    """Examine the run that the words describe, and say what was found on standard output.

    Args:
        words: what follows ``counterpoint doctor``.

    Returns:
        0 where nothing is wrong, 1 with warnings, 2 with errors.
    """
    options, others = COMMAND.read(words)
    if options.explain is not None:
        return _explain([options.explain, *others])
    report = _report(others)
    say(report.as_json() if options.json else report.as_table(table_width()))
    return report.exit_code


def _explain(words: list[str]) -> int:
    from counterpoint.doctor.table import TABLE, explain

    code = words[0].upper() if len(words) == 1 else ""
    if code not in TABLE:
        near = get_close_matches(code, TABLE, n=1) or ["CW101"]
        raise ConfigError(
            "CP103",
            f"--explain {' '.join(words)} should be one code, as in --explain {near[0]}; "
            "docs/diagnoses.md lists them.",
        )
    put(explain(code, terminal_width()).rstrip())
    return 0


def _report(words: list[str]) -> Report:
    with importing():
        from counterpoint.cli.train import consult
        from counterpoint.doctor.findings import Report, from_error
        from counterpoint.options.settings import read_request, read_what_can_be

    quiet_bars()
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
