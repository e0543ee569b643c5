"""Every candidate through every scorer, a window at a time, into the file.

Windows are cut at fixed places, so that one that is scored again after a kill has the same rows,
and so the same numbers to the bit.

Not here: the scorers, the file (``scored_file``), what is said at the end (``account``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from counterpoint.console.phases import phase
from counterpoint.evaluation.candidate_file import read_settings
from counterpoint.scoring.asked import AskedScorer
from counterpoint.scoring.entries import CandidateEntries, CandidateEntry
from counterpoint.scoring.scored_file import SAMPLED, SCORERS, SOURCES, open_scored
from counterpoint.scoring.scorer import Scorer, ScoringWork, checked
from counterpoint.scoring.total import scored_row

WINDOW = 256
"""Candidates that are scored before they are written."""


def score_candidates(
    entries: CandidateEntries, asked: Sequence[AskedScorer], out: Path, *, overwrite: bool = False
) -> list[str]:
    """Score what a file lacks.

    Args:
        entries: the candidates.
        asked: by what.
        out: the file to write or resume.
        overwrite: begin it anew.

    Returns:
        What the scorers have to say at the end.

    Raises:
        CounterpointError: CP1xx and CP5xx for what cannot be done; CP243, CP346 and CP347 for what
            a scorer does. What was written before that stays, and the same command resumes it.
    """
    with ExitStack() as stack:
        scorers = {}
        for one in asked:
            scorer = one.kind.make(one.argument, one.made_options())
            stack.callback(scorer.close)
            scorers[one.name] = scorer
        settings = {
            "reference": entries.reference,
            SCORERS: {one.name: {**one.settings(), **scorers[one.name].facts()} for one in asked},
        }
        about = _about(entries, out)
        may_grow = all(scorer.alone for scorer in scorers.values())
        file = stack.enter_context(
            open_scored(out, entries, settings, about, overwrite=overwrite, may_grow=may_grow)
        )
        if file.done < len(entries):
            done = file.done
            first = done - done % WINDOW
            for name, scorer in scorers.items():
                beside = out.with_name(f"{out.name}.{name}.jsonl")
                scorer.begin(ScoringWork(entries, first, beside))
            with phase("scoring", len(entries) - done, "candidates") as now:
                for start in range(first, len(entries), WINDOW):
                    window = list(entries.read(start, start + WINDOW))
                    rows = score_window(window, asked, scorers)
                    file.append(rows[file.done - start :])
                    now.advance(len(rows))
        return [text for scorer in scorers.values() for text in scorer.remarks()]


def score_window(
    window: Sequence[CandidateEntry], asked: Sequence[AskedScorer], scorers: Mapping[str, Scorer]
) -> list[dict[str, Any]]:
    """The rows of some candidates with their scores.

    Args:
        window: the candidates.
        asked: the scorers, with weights and requirements.
        scorers: the same by name.
    """
    passing = frozenset(name for name, scorer in scorers.items() if scorer.null_passes)
    columns = {
        one.name: checked(scorers[one.name].score(window), window, one.name) for one in asked
    }
    return [
        scored_row(entry, {name: column[n] for name, column in columns.items()}, asked, passing)
        for n, entry in enumerate(window)
    ]


def _about(entries: CandidateEntries, out: Path) -> dict[str, Any]:
    """Which files these were, and how their candidates were drawn, for ``counterpoint trace``."""
    sources = {_seen_from(path, out): read_settings(path) for path in entries.paths}
    return {
        SOURCES: list(sources),
        SAMPLED: {name: one for name, one in sources.items() if one is not None},
    }


def _seen_from(path: Path, out: Path) -> str:
    """A file's path from the folder of another, so that both can be moved together."""
    return os.path.relpath(path, out.parent)
