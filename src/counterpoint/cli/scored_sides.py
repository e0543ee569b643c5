"""Texts that an evaluation has written get the scores of ``counterpoint score``.

Both models' texts stand in one file, so that a judge compares them with each other.

Not here: writing texts (``evaluate``), what is made of scores (``evaluation.scored_texts``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.evaluation.findings import Side, by_kind
from counterpoint.scoring.asked import AskedScorer
from counterpoint.scoring.entries import read_entries
from counterpoint.scoring.windows import score_candidates
from counterpoint.strict import strict_json


def score_sides(sides: Mapping[str, Side], asked: Sequence[AskedScorer]) -> list[str]:
    """Score every text of every side.

    Args:
        sides: of the evaluation; their ``scored`` is filled in.
        asked: by what.

    Returns:
        What the scorers have to say.

    Raises:
        CounterpointError: as ``score_candidates``.
    """
    remarks: list[str] = []
    written = {who: by_kind(side) for who, side in sides.items()}
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as folder:
        for number, key in enumerate(dict.fromkeys(k for kinds in written.values() for k in kinds)):
            texts, scored = Path(folder, f"{number}.jsonl"), Path(folder, f"{number}-scored.jsonl")
            rows = list(_rows(written, key))
            lines = (f"{strict_json(row)}\n" for row in rows)
            texts.write_text("".join(lines), encoding="utf-8")
            remarks += score_candidates(read_entries([texts]), asked, scored)
            for line in scored.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found = sides[row["model"]].scored.setdefault(key, {})
                for name, score in row["scores"].items():
                    found.setdefault(name, []).append(score)
    return remarks


def _rows(
    written: Mapping[str, Mapping[tuple[str, str], Any]], key: tuple[str, str]
) -> Iterator[dict[str, Any]]:
    for who, kinds in written.items():
        for row, one in enumerate(kinds.get(key, ())):
            yield {
                "prompt": one.prompt,
                "text": one.text,
                "reference": one.reference,
                "model": who,
                "row": row,
                "candidate": 0,
                "tokens": len(one.ids),
                "ended": one.ended,
            }
