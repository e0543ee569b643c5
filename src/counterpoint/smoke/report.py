"""What a smoke run says: one ``Check`` a line, all of them in a ``SmokeReport``.

Not here: checking anything (``checks``), measuring the real model (``real``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from counterpoint.language import phrase
from counterpoint.notebook import notebook_html, rows_shown
from counterpoint.smoke.real import MeasuredSteps, time_in_words
from counterpoint.strict import strict_json
from counterpoint.wrap import wrap

Status = Literal["ok", "failed", "not applicable"]
STATUSES: tuple[Status, ...] = ("ok", "failed", "not applicable")

MARGIN = " " * 32


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Args:
        name: what should be so.
        status: "failed" where it is not so, "not applicable" where it cannot be asked.
        seen: what was seen, with numbers.
    """

    name: str
    status: Status
    seen: str

    def as_lines(self, width: int) -> Iterator[str]:
        """The check's lines of the table, no wider than ``width`` columns."""
        # a message may quote data, which must not move the cursor
        seen = "".join(c if c.isprintable() or c == "\n" else "?" for c in self.seen)
        yield from wrap(seen, width, f"{self.status:<16}{self.name:<16}", MARGIN)


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """Everything that was tried.

    Args:
        twin: what the miniature was made of, in words.
        checks: in the order they were made.
        real: of the real model; None if it was not asked for.
        seconds: all of it took.
    """

    twin: str
    checks: tuple[Check, ...]
    real: MeasuredSteps | None
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or 1 where a check failed."""
        return int(any(check.status == "failed" for check in self.checks))

    def summary(self) -> str:
        """How many of each: "6 ok, 0 failed, 1 not applicable, in 21 s"."""
        counts = [f"{sum(c.status == one for c in self.checks)} {one}" for one in STATUSES]
        return f"{', '.join(counts)}, in {time_in_words(self.seconds)}"

    def _repr_html_(self) -> str:
        """The checks as a table, in a notebook."""
        rows = [(phrase(check.status), check.name, check.seen) for check in self.checks]
        titles = ("status", "check", "seen")
        return notebook_html(
            f"{self.twin}: {self.summary()}", rows_shown(titles, rows, label="checks")
        )

    def as_json(self) -> str:
        """The report for machines."""
        content = {
            "exit_code": self.exit_code,
            "summary": self.summary(),
            "twin": self.twin,
            "checks": [asdict(check) for check in self.checks],
            "real": None if self.real is None else self.real.as_dict(),
            "seconds": round(self.seconds, 1),
        }
        return strict_json(content, indent=2)


def head(twin: str, width: int) -> Sequence[str]:
    """The lines above the table."""
    return [*wrap(twin, width), ""]
