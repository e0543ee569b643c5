r"""A scorer of the quickstart's task that is wrong one time in ten, for ``counterpoint score``.

    counterpoint score candidates.jsonl --out scored.jsonl --with noisy_flaws:score
    counterpoint score candidates.jsonl --out scored.jsonl \
        --with 'flaws=command:python benchmarks/noisy_flaws.py'

A text's score is less by one for each flaw, and -5 for another number. With a chance of ``WRONG``
it is one of these six numbers, each as likely, whatever the text.

Not here: what a flaw is (``counterpoint.quickstart.task``).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from counterpoint.quickstart.task import SEPARATOR, Flaw, english, flaws_in

WRONG = 0.1
"""Share of scores that say nothing of the text."""

WORST = len(Flaw) + 1


def score(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The scores of some candidates; the same for the same candidate, whenever it is asked.

    Args:
        rows: of ``counterpoint sample``.
    """
    return [-_flaws(row) for row in rows]


def _flaws(row: Mapping[str, Any]) -> float:
    draw = random.Random(f"{row['model']} {row['prompt']} {row['candidate']} {row['text']}")
    if draw.random() < WRONG:
        return float(draw.randrange(WORST + 1))
    found = flaws_in(number_asked(str(row["prompt"])), str(row["text"]))
    return float(WORST if found is None else len(found))


def number_asked(prompt: str) -> int:
    """The number that a prompt spells.

    Args:
        prompt: of the quickstart's task.
    """
    thousands, comma, rest = prompt.removesuffix(SEPARATOR).rpartition(" thousand")
    below = _below_1000()
    return below[thousands] * 1000 + (below[rest.strip()] if rest else 0) if comma else below[rest]


@cache
def _below_1000() -> dict[str, int]:
    return {english(number): number for number in range(1000)}


def main() -> int:
    """Score the candidates of standard input, a line each."""
    for line in sys.stdin:
        print(*score([json.loads(line)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
