"""What the doctor says: one ``Finding`` a fact, all of them in a ``Report``.

Not here: what a code means (``table``), and finding anything (``of_*``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from counterpoint.doctor.table import meaning, meaning_in_english, severity_of
from counterpoint.errors import (
    ConfigError,
    CounterpointError,
    DataError,
    ModelError,
    SetupError,
    TrainingError,
)
from counterpoint.invocation import runnable
from counterpoint.language import phrase, spoken
from counterpoint.notebook import notebook_html, rows_shown
from counterpoint.strict import strict_json
from counterpoint.wrap import columns, cut_text, padded, wrap

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

MOST_ROWS = 5
"""Row numbers that a finding shows."""

NARROWEST = 40
"""Columns below which the table is not folded any further."""

_CLASSES: dict[str, type[CounterpointError]] = {
    "1": ConfigError,
    "2": DataError,
    "3": ModelError,
    "4": TrainingError,
    "5": SetupError,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor saw.

    Args:
        code: a key of ``table.TABLE``.
        severity: "error" refuses to train, "warning" does not, "note" only tells.
        seen: what was seen, with values.
        rows: the first numbers of rows it was seen in, at most ``MOST_ROWS``.
        fix: a line of configuration or code to paste; "" where there is none.
    """

    code: str
    severity: Severity
    seen: str
    rows: tuple[int, ...] = ()
    fix: str = ""

    def _repr_html_(self) -> str:
        """The finding alone, in a notebook."""
        return Report.of([self])._repr_html_()


def find(
    code: str,
    seen: str,
    *,
    fix: str = "",
    rows: Sequence[int] = (),
    severity: Severity | None = None,
) -> Finding:
    """A finding, with the severity of its code unless another is given.

    Args:
        code: a key of ``table.TABLE``, or of an error.
        seen: what was seen, with values.
        fix: a line to paste.
        rows: numbers of rows; the first few are kept.
        severity: in place of the code's own.

    Raises:
        KeyError: for a code that is neither.
    """
    meaning(code)  # an unlisted code has no page to look it up on
    return Finding(code, severity or severity_of(code), seen, tuple(rows[:MOST_ROWS]), fix)


def from_error(error: CounterpointError) -> Finding:
    """What a coded error says, as a finding."""
    return find(error.code, error.message)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found, the worst first.

    Args:
        findings: errors, then warnings, then notes, each in the order of their codes.
    """

    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Report:
        """Sort findings, and keep each once."""
        once = dict.fromkeys(findings)
        return cls(tuple(sorted(once, key=lambda f: (SEVERITIES.index(f.severity), f.code))))

    @property
    def exit_code(self) -> int:
        """0 with nothing but notes, 1 with warnings, 2 with errors."""
        return 2 if self.of_severity("error") else 1 if self.of_severity("warning") else 0

    def of_severity(self, *severities: Severity) -> tuple[Finding, ...]:
        """The findings of these severities."""
        return tuple(finding for finding in self.findings if finding.severity in severities)

    def refusal(self) -> CounterpointError | None:
        """The error that refuses to train: the first one's, which names how many more there are."""
        errors = self.of_severity("error")
        if not errors:
            return None
        first = errors[0]
        others = ", ".join(dict.fromkeys(finding.code for finding in errors[1:]))
        more = f" Also found: {others}." if others else ""
        return _CLASSES[first.code[2]](first.code, f"{first.seen}{more}")

    def summary(self) -> str:
        """How many of each: "1 error, 2 warnings, 3 notes"."""
        counts = [(len(self.of_severity(one)), one) for one in SEVERITIES]
        return ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts)

    def as_json(self) -> str:
        """The report for machines: exit code, summary, and each finding with its explanation."""
        findings = [
            {
                "code": finding.code,
                "severity": finding.severity,
                "title": meaning_in_english(finding.code).title,
                "seen": finding.seen,
                "rows": list(finding.rows),
                "why": meaning_in_english(finding.code).why,
                "do": meaning_in_english(finding.code).do,
                "fix": finding.fix,
            }
            for finding in self.findings
        ]
        content = {"exit_code": self.exit_code, "summary": self.summary(), "findings": findings}
        return strict_json(content, indent=2)

    def as_lines(self, width: int | None, severities: Sequence[Severity]) -> list[str]:
        """A line for each finding: its code, what is so, and as much of what was seen as fits.

        Args:
            width: columns of the terminal; None where nobody folds the line.
            severities: which findings to show.
        """
        return [_line(finding, width) for finding in self.of_severity(*severities)]

    def as_table(self, width: int, severities: Sequence[Severity] = SEVERITIES) -> str:
        """The report for people.

        Args:
            width: columns of the terminal; nothing but a line to paste is wider.
            severities: which findings to show.
        """
        shown = self.of_severity(*severities)
        lines = [line for finding in shown for line in [*_block(finding, width), ""]]
        return "\n".join([*lines, self._summary_spoken()])

    def _repr_html_(self) -> str:
        """The report as a table, in a notebook."""
        columns = ("code", "severity", "what is so", "seen", "do", "paste")
        rows = [
            (
                finding.code,
                phrase(finding.severity),
                meaning(finding.code).title,
                _seen(finding),
                "" if finding.severity == "note" else runnable(meaning(finding.code).do),
                finding.fix,
            )
            for finding in self.findings
        ]
        titles = [phrase(column) for column in columns]
        return notebook_html(self._summary_spoken(), rows_shown(titles, rows, label="findings"))

    def _summary_spoken(self) -> str:
        if spoken() == "en":
            return self.summary()
        text = "{errors} errors, {warnings} warnings, {notes} notes"
        return phrase(text, **{f"{one}s": len(self.of_severity(one)) for one in SEVERITIES})


def _block(finding: Finding, width: int) -> Iterator[str]:
    entry = meaning(finding.code)
    across = max(NARROWEST, width)
    severity = padded(phrase(finding.severity).upper(), 8)
    yield from wrap(entry.title, across, f"{severity}{finding.code}  ", " " * 15)
    yield from wrap(_seen(finding), across, _label("seen"), " " * 8)
    if finding.severity == "note":
        return
    yield from wrap(entry.why, across, _label("why"), " " * 8)
    yield from wrap(runnable(entry.do), across, _label("do"), " " * 8)
    # not folded: it is there to be copied
    yield from (f"{_label('paste')}{line}" for line in finding.fix.splitlines())


def _seen(finding: Finding) -> str:
    """What was seen and in which rows, in words that a terminal can show."""
    seen = finding.seen
    if finding.rows:
        rows = ", ".join(str(row) for row in finding.rows)
        seen += f" ({phrase('rows {rows}', rows=rows)})"
    # what data hold must not move the cursor, nor be half a character that no terminal takes
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in runnable(seen))


def _line(finding: Finding, width: int | None) -> str:
    seen = " ".join(_seen(finding).split())
    line = f"{finding.code}  {meaning(finding.code).title}: {seen}"
    if width is None or columns(line) <= width:
        return line
    kept, _ = cut_text(line, max(NARROWEST, width) - 1)
    return f"{kept.rstrip()}…"


def _label(word: str) -> str:
    return f"  {padded(phrase(word), 6)}"
