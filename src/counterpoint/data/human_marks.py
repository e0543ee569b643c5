"""What a human chose among candidates, from a file of its own.

Each line names a candidate: by ``model``, ``row`` and ``candidate`` as ``counterpoint sample``
writes them, or by ``prompt`` and ``text``.

Not here: a column that marks candidates (``PairRules.preferred``), what a mark does (``scored``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import DataError, first_line

PLACE = ("model", "row", "candidate")
"""Fields that together name a candidate of a sampling."""


@dataclass
class HumanMarks:
    """Candidates that a human prefers.

    Args:
        path: of their file, for messages.
        lines: what names a candidate -> the line that does.
        used: lines whose candidate was there.
    """

    path: Path
    lines: dict[str, int] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def has(self, fields: Mapping[str, Any], prompt: Any, text: Any) -> bool:
        """Whether a candidate is one of them.

        Args:
            fields: of the candidate.
            prompt: that it answers.
            text: of the candidate.
        """
        line = self.lines.get(_by_text(prompt, text))
        place = candidate_place(fields)
        if line is None and place is not None:
            line = self.lines.get(_by_place(place))
        if line is not None:
            self.used.add(line)
        return line is not None

    def check_used(self) -> None:
        """Refuse choices of candidates that there are not.

        Raises:
            DataError: CP244, with the first line.
        """
        idle = sorted(set(self.lines.values()) - self.used)
        if idle:
            raise DataError(
                "CP244",
                f"{self.path}: {len(idle)} of {len(self.lines)} choices are of no candidate that "
                f"was read, the first in line {idle[0]}. Give all files of candidates, or mend it.",
            )


def read_marks(path: Path) -> HumanMarks:
    """Read a file of choices.

    Args:
        path: of JSON lines.

    Raises:
        DataError: CP210 for a line that names no candidate, CP211 where there is no such file.
    """
    marks = HumanMarks(path)
    try:
        with path.open("rb") as file:
            for number, key in _keys(path, file):
                marks.lines.setdefault(key, number)
    except OSError as error:
        raise DataError("CP211", f"{path} cannot be read: {first_line(error)}") from error
    return marks


def candidate_place(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Model, row and number of a candidate; None where it has them not."""
    if all(fields.get(name) is not None for name in PLACE):
        return {name: fields[name] for name in PLACE}
    return None


def _keys(path: Path, file: Any) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            place = candidate_place(row)
            yield number, _by_place(place) if place else _by_text(row["prompt"], row["text"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                "CP210",
                f"{path}, line {number}: should name a candidate by model, row and candidate, or "
                "by prompt and text.",
            ) from error


def _by_place(place: Mapping[str, Any]) -> str:
    return json.dumps([str(place["model"]), int(place["row"]), int(place["candidate"])])


def _by_text(prompt: Any, text: Any) -> str:
    return json.dumps({"prompt": prompt, "text": text}, sort_keys=True)
