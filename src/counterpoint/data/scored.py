"""Scored candidates become preference pairs: which two of a prompt, and why not the others.

1. Two candidates may be a pair if their scores differ, by ``min_gap`` at least, and their texts
   differ, by more than white space and Unicode's compatible forms.
2. Where a human marked candidates, these are chosen and the others rejected, whatever the scores
   (ALMA's rule, arXiv:2401.08417).
3. Of the pairs that may be, ``select`` takes some. Every two candidates are counted once, under
   what became of them.

The gap stays with a pair as ``score_gap``. It is not called ``margin``, which training would
read as nats of reward.

Not here: names of columns (``candidates``), files (``sources``, ``saving``).
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from counterpoint.data.candidates import Candidate, LeftOut, ScoredPrompt, read_prompts
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.human_marks import HumanMarks
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.scored_counts import ScoredCounts
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError
from counterpoint.notebook import notebook_html, rows_shown
from counterpoint.preference_row import Text

WIDE_ENOUGH = 0.5
"""Share of a prompt's widest gap that a pair needs where lengths decide."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """What ``pairs_from_scored`` made.

    Args:
        pairs: rows that ``CPOTrainer`` takes as they are, in the prompts' order: ``prompt``,
            ``chosen``, ``rejected``, ``score_gap`` (how much better chosen scored, in units of
            the score), ``chosen_score``, ``rejected_score``, the kept columns, ``human`` where
            marks are read, ``margin`` where a scale is given.
        counts: what became of everything that was read.
    """

    pairs: list[dict[str, Any]]
    counts: ScoredCounts

    def _repr_html_(self) -> str:
        """What was made, and the first pairs, in a notebook."""
        columns = list(dict.fromkeys(name for pair in self.pairs[:50] for name in pair))
        rows = ([pair.get(name) for name in columns] for pair in self.pairs)
        return notebook_html(
            self.counts.summary(), rows_shown(columns, rows, label="pairs", most=5, spoken=False)
        )


def pairs_from_scored(
    rows: Iterable[Mapping[str, Any]],
    rules: PairRules | None = None,
    *,
    name: str = "the data set",
    marks: HumanMarks | None = None,
) -> ScoredPairs:
    """Make preference pairs of scored candidates.

    Args:
        rows: each a prompt with a list of candidates, or each a candidate; docs/data.md shows
            the shapes.
        rules: names of columns, and which candidates become pairs; None: the defaults.
        name: the data set's name in messages and counts.
        marks: what a human chose, from a file; it wins over scores, and over vetoes.

    Returns:
        The pairs, the same for the same rows and rules, and the account of everything read.

    Raises:
        DataError: CP201, CP202, CP203, CP206 or CP215 for the first row or candidate that cannot
            be used if ``invalid_rows`` is "raise". CP209 if there is no pair at all. CP244 for a
            human's choice of a candidate that there is not.
    """
    rules = rules or PairRules()
    counts = ScoredCounts(name)

    def drop(error: DataError | LeftOut) -> None:
        if isinstance(error, LeftOut):
            counts.left_out[error.why] += 1
            return
        if rules.invalid_rows == "raise":
            raise DataError(error.code, f"{name}, {error.message} {_ADVICE}") from error
        counts.drop(error)

    pairs: list[dict[str, Any]] = []
    counted = _counted(lists_of_csv(undecoded(rows), name), counts)
    for number, prompt in enumerate(read_prompts(counted, rules, drop, marks)):
        pairs += _pairs_of(prompt, rules, counts, number, marks is not None)
    if marks is not None:
        marks.check_used()
    if not pairs:
        raise DataError(
            "CP209",
            f"{name} gives no pair. {' '.join(counts.summary().split())}",
        )
    return ScoredPairs(pairs, counts)


_ADVICE = 'Repair the data, or set invalid_rows="drop" to do without it.'


def _counted(
    rows: Iterable[Mapping[str, Any]], counts: ScoredCounts
) -> Iterable[Mapping[str, Any]]:
    for row in rows:
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            text = f"{counts.name}, row {counts.rows} is of type {kind}; expected a dict."
            raise DataError("CP202", text)
        counts.rows += 1
        yield row


def _pairs_of(
    prompt: ScoredPrompt, rules: PairRules, counts: ScoredCounts, number: int, marked: bool
) -> list[dict[str, Any]]:
    counts.prompts += 1
    counts.candidates += len(prompt.candidates)
    candidates = prompt.candidates
    if rules.average_same_text:
        candidates = average_same_text(candidates)
        counts.averaged += len(prompt.candidates) - len(candidates)
    usable, fates = candidate_pairs(candidates, rules)
    counts.fates += fates
    if rules.select == "length_balanced":
        taken = balanced(usable, candidates, counts.longer)
        counts.longer += sum(longer_by(pair, candidates) for pair in taken)
    else:
        taken = select(usable, candidates, rules, draw=f"{rules.seed or 0}:{number}")
    if not taken:
        counts.without[_nearest(fates)] += 1
    _count_taken(taken, candidates, counts)
    marked = marked or rules.preferred is not None
    return [_record(prompt, candidates, pair, rules, marked) for pair in taken]


# Which two


class CandidatePair(NamedTuple):
    """Two candidates by their places; ``gap`` is how much better chosen scored."""

    chosen: int
    rejected: int
    gap: float


def average_same_text(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """One candidate a text, with the mean of the scores and a mark if any of them has one."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(folded(candidate.text), []).append(candidate)
    # statistics.mean is exact: the mean of equal scores is that score, and stays tied with others
    return tuple(
        Candidate(
            same[0].text,
            statistics.mean(one.score for one in same),
            any(one.preferred for one in same),
            any(one.outranks for one in same),
            same[0].place,
        )
        for same in groups.values()
    )


def chosen_by_mark(candidates: Sequence[Candidate]) -> list[bool]:
    """Which candidates are chosen whatever the scores: a human's, or else the reference."""
    human = [candidate.preferred for candidate in candidates]
    return human if any(human) else [candidate.outranks for candidate in candidates]


def candidate_pairs(
    candidates: Sequence[Candidate], rules: PairRules
) -> tuple[list[CandidatePair], Counter[str]]:
    """Every two candidates of a prompt that may be a pair, and what became of the others.

    Args:
        candidates: of one prompt.
        rules: ``min_gap`` and the score's direction are read.

    Returns:
        The usable ones in order of appearance, and all by ``FATES``.
    """
    texts = [folded(candidate.text) for candidate in candidates]
    scores = [rules.sign * candidate.score for candidate in candidates]
    marks = chosen_by_mark(candidates)
    any_marks = any(marks)
    usable, fates = [], Counter[str]()
    for first, second in itertools.combinations(range(len(candidates)), 2):
        gap = scores[first] - scores[second]
        decided = marks[first] != marks[second]
        right = marks[first] if decided else gap >= 0
        if any_marks and not decided:
            fate = "overruled"
        elif not decided and gap == 0:
            fate = "tied"
        elif not decided and abs(gap) < rules.min_gap:
            fate = "narrow"
        elif texts[first] == texts[second]:
            fate = "same_text"
        else:
            fate = "usable"
            ends = (first, second, gap) if right else (second, first, -gap)
            usable.append(CandidatePair(*ends))
        fates[fate] += 1
    return usable, fates


def select(
    usable: Sequence[CandidatePair],
    candidates: Sequence[Candidate],
    rules: PairRules,
    *,
    draw: str,
) -> list[CandidatePair]:
    """The pairs of a prompt that ``rules.select`` takes.

    Args:
        usable: what may be a pair, from ``candidate_pairs``.
        candidates: all of the prompt's.
        rules: ``select`` and ``per_prompt`` are read.
        draw: what best_random is seeded with.

    Returns:
        At most ``per_prompt``; of equals, what appears first.
    """
    if rules.select == "all":
        return sorted(usable, key=lambda pair: -pair.gap)[: rules.per_prompt]
    marks = chosen_by_mark(candidates)
    scores = [rules.sign * candidate.score for candidate in candidates]
    winners = [s for s, mark in zip(scores, marks, strict=True) if mark or not any(marks)]
    best = [pair for pair in usable if scores[pair.chosen] == max(winners)]
    if rules.select == "best_worst":
        losers = [s for s, mark in zip(scores, marks, strict=True) if not mark]
        return [pair for pair in best if scores[pair.rejected] == min(losers)][:1]
    of_one = [pair for pair in best if pair.chosen == min(p.chosen for p in best)]
    count = min(rules.per_prompt or 1, len(of_one))
    return random.Random(draw).sample(of_one, count)


def balanced(
    usable: Sequence[CandidatePair], candidates: Sequence[Candidate], longer: int
) -> list[CandidatePair]:
    """The pair of a prompt that brings lengths nearest to each other, or none.

    Where every prompt has a pair whose chosen is no longer and one whose chosen is no shorter, the
    sum of all differences never exceeds the largest single one.

    Args:
        usable: what may be a pair.
        candidates: all of the prompt's.
        longer: characters that chosen texts have beyond rejected ones so far.
    """
    widest = max((pair.gap for pair in usable), default=0.0)
    # a human's pairs may all be against the scores; then no gap says which of them is wide
    wide = [pair for pair in usable if widest <= 0 or pair.gap >= widest * WIDE_ENOUGH]
    return sorted(wide, key=lambda pair: (abs(longer + longer_by(pair, candidates)), -pair.gap))[:1]


def longer_by(pair: CandidatePair, candidates: Sequence[Candidate]) -> int:
    """Characters that chosen has beyond rejected, white space folded."""
    chosen, rejected = (folded(candidates[n].text) for n in (pair.chosen, pair.rejected))
    return len(chosen) - len(rejected)


def folded(text: Text) -> str:
    """A text without what no reader tells apart: white space, Unicode's compatible forms."""
    plain = text if isinstance(text, str) else json.dumps(text, sort_keys=True, ensure_ascii=False)
    return " ".join(unicodedata.normalize("NFKC", plain).split())


def _nearest(fates: Counter[str]) -> str:
    """Why a prompt has no pair: the fate that is nearest to being one."""
    return next((fate for fate in reversed(_NEARNESS) if fates[fate]), "single")


_NEARNESS = ("overruled", "tied", "narrow", "same_text", "usable")


def _count_taken(
    taken: Sequence[CandidatePair], candidates: Sequence[Candidate], counts: ScoredCounts
) -> None:
    counts.pairs += len(taken)
    texts = [folded(candidate.text) for candidate in candidates]
    made = Counter((texts[pair.chosen], texts[pair.rejected]) for pair in taken)
    counts.repeated += len(taken) - len(made)
    counts.contradicted += sum(n for pair, n in made.items() if pair[::-1] in made)
    for pair in taken:
        counts.human += candidates[pair.chosen].preferred
        counts.against_scores += pair.gap <= 0


def _record(
    prompt: ScoredPrompt,
    candidates: Sequence[Candidate],
    pair: CandidatePair,
    rules: PairRules,
    marked: bool,
) -> dict[str, Any]:
    chosen, rejected = candidates[pair.chosen], candidates[pair.rejected]
    record: dict[str, Any] = {
        "prompt": prompt.prompt,
        "chosen": _completion(chosen.text, rules),
        "rejected": _completion(rejected.text, rules),
        "score_gap": pair.gap,
        "chosen_score": chosen.score,
        "rejected_score": rejected.score,
    }
    if chosen.place is not None and rejected.place is not None:
        record |= {"chosen_from": dict(chosen.place), "rejected_from": dict(rejected.place)}
    if marked:
        record["human"] = chosen.preferred
    if rules.margin_scale is not None:
        # where a human overrules the scores, their gap is no reason to ask for more or for less
        record["margin"] = rules.margin_scale * max(0.0, pair.gap)
    return {**record, **prompt.kept}


def _completion(text: Text, rules: PairRules) -> Text:
    return f"{rules.completion_prefix}{text}" if isinstance(text, str) else text
