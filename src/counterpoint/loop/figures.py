"""What came of each round, counted from its files.

Rounds are compared on the prompts that are held out: every model answers the same ones, and each
answer of a round meets each answer of the round before to its prompt. Intervals draw whole prompts.

Not here: showing it (``page``), what is worrying about it (``worries``).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.data.candidates import asked_beside
from counterpoint.evaluation.bootstrap import Bootstrap, BootstrapEstimate, Resampling, mean
from counterpoint.loop.stages import LoopCourse

WINDOW = Resampling(resamples=1000)
"""Of all intervals."""


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """A file of scored candidates, counted.

    Args:
        prompts: how many.
        texts: how many.
        score: mean of the weighted score, over prompts.
        scorers: mean of each score by its name.
        tokens: mean length of a text, in tokens.
        distinct: mean share of unlike texts among those of a prompt, in (0, 1].
        tied: share of prompts whose scores are all the same, of those with two or more.
        vetoed: share of texts that were vetoed or have no score.
    """

    prompts: int
    texts: int
    score: BootstrapEstimate
    scorers: Mapping[str, BootstrapEstimate]
    tokens: float
    distinct: float
    tied: float
    vetoed: float


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """A round, counted; what its files do not hold is None or empty.

    Args:
        number: of the round; 0 is the first model.
        drawn: the candidates that it trained on, which are of the model before it.
        held: the answers of its own model to what is held out.
        wins: share of comparisons with the round before that its model's answers win by score,
            equal scores as half a win.
        pairs: that it made.
        accuracy: share of held-out pairs whose chosen its model prefers, by set.
        measures: of texts that its model wrote greedily, by set and measure.
    """

    number: int
    drawn: ScoredTexts | None = None
    held: ScoredTexts | None = None
    wins: BootstrapEstimate | None = None
    pairs: int | None = None
    accuracy: Mapping[str, BootstrapEstimate] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)


def figures_of(course: LoopCourse, ended: Collection[str]) -> list[RoundFigures]:
    """Every round that has anything to count.

    Args:
        course: of a loop, which need not be done.
        ended: keys of the stages that are; what another has written is not whole.
    """
    found, before = [], None
    files = {stage.key: stage.writes[0] for stage in course.stages() if stage.key in ended}
    for number in range(course.recipe.rounds + 1):
        mine = {stage: files.get(f"round-{number}/{stage}") for stage in _COUNTED}
        if not any(mine.values()):
            continue
        held = _groups(mine["judge"])
        accuracy, measures = _evaluated(mine["evaluate"])
        found.append(
            RoundFigures(
                number,
                _counted_texts(_groups(mine["score"])),
                _counted_texts(held),
                wins_over(before, held) if before and held else None,
                _lines(mine["pairs"]),
                accuracy,
                measures,
            )
        )
        before = held or None
    return found


_COUNTED = ("score", "pairs", "evaluate", "judge")
"""Stages whose files are counted."""


Groups = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of each prompt."""


def wins_over(before: Groups, now: Groups) -> BootstrapEstimate | None:
    """How often answers score above those of the round before, to the same prompts.

    Args:
        before: scored answers, by prompt.
        now: the same of the round.

    Returns:
        None where no prompt has a score on both sides.
    """
    shares = []
    for prompt in now:
        ours, theirs = _scores(now[prompt]), _scores(before.get(prompt, ()))
        if ours and theirs:
            won = [(a > b) + 0.5 * (a == b) for a in ours for b in theirs]
            shares.append(sum(won) / len(won))
    return _mean(shares, is_share=True)


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of those that may be chosen; a veto takes a text out, as it does of pairs."""
    return [float(one["score"]) for one in rows if one["score"] is not None and not one["vetoed"]]


def _mean(values: Sequence[float], *, is_share: bool = False) -> BootstrapEstimate | None:
    if not values:
        return None
    draws = Bootstrap(np.arange(len(values)), WINDOW)
    return draws.estimates({"mean": mean(values, is_share=is_share)})["mean"]


def _groups(path: Path | None) -> Groups:
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    if path is not None:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                asked = [row["prompt"], asked_beside(row)]
                found[json.dumps(asked, sort_keys=True)].append(row)
    return found


def _counted_texts(groups: Groups) -> ScoredTexts | None:
    rows = [row for group in groups.values() for row in group]
    if not rows:
        return None
    by_prompt = [_scores(group) for group in groups.values()]
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    nothing = BootstrapEstimate(math.nan, math.nan, math.nan)
    several = [scores for scores in by_prompt if len(scores) > 1]
    return ScoredTexts(
        len(groups),
        len(rows),
        _mean([sum(one) / len(one) for one in by_prompt if one]) or nothing,
        {name: _of_scorer(groups, name) or nothing for name in names},
        sum(row["tokens"] for row in rows) / len(rows),
        sum(len({row["text"] for row in one}) / len(one) for one in groups.values()) / len(groups),
        sum(len(set(one)) == 1 for one in several) / len(several) if several else math.nan,
        1 - sum(map(len, by_prompt)) / len(rows),
    )


def _of_scorer(groups: Groups, name: str) -> BootstrapEstimate | None:
    known = [
        [float(row["scores"][name]) for row in group if row["scores"].get(name) is not None]
        for group in groups.values()
    ]
    return _mean([sum(one) / len(one) for one in known if one])


def _lines(path: Path | None) -> int | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _evaluated(
    path: Path | None,
) -> tuple[dict[str, BootstrapEstimate], dict[str, float]]:
    if path is None:
        return {}, {}
    side = json.loads(path.read_text(encoding="utf-8"))["after"]
    accuracy = {
        name: BootstrapEstimate(**one["measures"]["accuracy"]) for name, one in side["sets"].items()
    }
    measures = {
        f"{name}, {measure}" if len(side["texts"]) > 1 else measure: float(value)
        for name, ways in side["texts"].items()
        for measure, value in ways["greedy"].items()
        if value is not None
    }
    return accuracy, measures
