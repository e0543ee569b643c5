"""From a pair back to its candidates, their scores, and how both were made.

Everything is read from files beside: the pairs' settings name the scored files, whose settings hold
the scorers and how the candidates were drawn. What is not there any more is said.

Not here: what it looks like (``cli.trace``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.data.human_marks import candidate_place
from counterpoint.errors import DataError
from counterpoint.evaluation.candidate_file import MODELS, read_settings
from counterpoint.scoring.scored_file import SAMPLED, SCORERS, SOURCES

SIDES = ("chosen", "rejected")


@dataclass
class TracedSide:
    """A completion of a pair.

    Args:
        text: of the pair.
        place: its candidate's model, row and number; None where the pair does not say.
        row: the candidate as it was scored, without its prompt; None where it was not found.
        file: that it was found in.
        scorers: by what it was scored.
        sampled: how it was drawn: the settings of its model among them.
    """

    text: Any
    place: Mapping[str, Any] | None
    row: Mapping[str, Any] | None = None
    file: str | None = None
    scorers: Mapping[str, Any] = field(default_factory=dict)
    sampled: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "text": self.text,
            "from": self.place,
            "file": self.file,
            "candidate": self.row,
            "scorers": self.scorers,
            "sampled": self.sampled,
        }


@dataclass
class TracedPair:
    """A pair and where it came from.

    Args:
        pair: its row.
        rules: by which it was made; None where nothing beside the file says.
        sides: chosen and rejected.
        missing: files that were there and are not.
    """

    pair: Mapping[str, Any]
    rules: Mapping[str, Any] | None
    sides: dict[str, TracedSide]
    missing: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        given = ("prompt", "score_gap", "chosen_score", "rejected_score", "human", "margin")
        return {
            **{name: self.pair[name] for name in given if name in self.pair},
            "rules": self.rules,
            **{name: side.as_dict() for name, side in self.sides.items()},
            "missing": self.missing,
        }


def trace_pair(path: Path, pair: Mapping[str, Any]) -> TracedPair:
    """Find both candidates of a pair.

    Args:
        path: of the file of pairs.
        pair: a row of it.

    Raises:
        DataError: CP201 for a row that is no pair.
    """
    for name in ("prompt", *SIDES):
        if name not in pair:
            raise DataError("CP201", f"{path}: the row has no column {name}; it is no pair.")
    sides = {name: TracedSide(pair[name], pair.get(f"{name}_from")) for name in SIDES}
    settings = read_settings(path) or {}
    found = TracedPair(pair, settings.get("rules"), sides)
    for source in settings.get("sources", ()):
        file = path.parent / source
        if not file.is_file():
            found.missing.append(str(file))
            continue
        _find(file, [side for side in sides.values() if side.row is None])
    return found


def _find(file: Path, sides: Sequence[TracedSide]) -> None:
    """Look for candidates in a scored file."""
    settings = read_settings(file) or {}
    with file.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            place = candidate_place(row)
            for side in sides:
                if place is not None and place == side.place:
                    side.row = {name: cell for name, cell in row.items() if name != "prompt"}
                    side.file = os.path.relpath(file)
                    side.scorers = settings.get(SCORERS, {})
                    side.sampled = _sampled(settings, place)


def _sampled(settings: Mapping[str, Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """How a candidate was drawn, by the file of candidates that has its model."""
    for source in settings.get(SOURCES, ()):
        drawn = settings.get(SAMPLED, {}).get(source)
        if drawn is not None and place["model"] in drawn.get(MODELS, {}):
            own = {name: value for name, value in drawn.items() if name != MODELS}
            return {"file": source, **own, "model": drawn[MODELS][place["model"]]}
    return {}
