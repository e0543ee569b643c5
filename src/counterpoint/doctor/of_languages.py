"""The languages of completions, judged: what ``off_target`` identified, as findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from counterpoint.doctor.findings import MOST_ROWS, Finding, find
from counterpoint.doctor.off_target import Languages
from counterpoint.invocation import EXTRAS, installing

NAMED = 3
"""Languages that a finding names."""


def of_languages(name: str, found: Languages) -> Iterator[Finding]:
    """Say which completions are in another language than their row asks for.

    Args:
        name: of the set.
        found: what its completions are in.
    """
    if not found.asked:
        return
    if found.missing:
        yield find(
            "CN130",
            f"{name}: {found.asked:,} rows ask for a language, and nothing here tells which one "
            f"their completions are in: {installing(EXTRAS['translation'])}",
        )
        return
    sides = dict(found.sides())
    if any(side.no_accident for side in sides.values()):
        others = sum((side.found for side in sides.values()), Counter[tuple[str, str]]())
        seen = ", ".join(
            f"{count:,} x {other} for {asked}"
            for (asked, other), count in others.most_common(NAMED)
        )
        rows = dict.fromkeys(row for side in sides.values() for row in side.off.rows)
        yield find(
            "CW130",
            f"{name}: {_off(found)} are in another language ({seen}).",
            rows=list(rows)[:MOST_ROWS],
        )
    yield find("CN130", f"{name}: {_looked_at(found)}.")


def _off(found: Languages) -> str:
    shares = [
        f"{side.off.count:,} of {side.told:,} {name} ({side.off.count / max(side.told, 1):.1%})"
        for name, side in found.sides()
    ]
    return " and ".join(shares)


def _looked_at(found: Languages) -> str:
    """What was identified, and what could not be."""
    told = " and ".join(f"{side.told:,} {name}" for name, side in found.sides())
    text = f"of {found.asked:,} rows that ask for a language, that of {told} could be told"
    if found.every > 1:
        text = f"one row in {found.every} was looked at; {text}"
    if found.unknown:
        shown = ", ".join(f"{count:,} x {code}" for code, count in found.unknown.most_common(NAMED))
        more = len(found.unknown) - NAMED
        text += f"; unknown to the identifier: {shown}{f' and {more} more' if more > 0 else ''}"
    if any(side.off.count and not side.no_accident for _, side in found.sides()):
        text += f"; {_off(found)} seem to be in another one"
    return text
