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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from counterpoint.data.candidates import Candidate, LeftOut, ScoredPrompt, read_prompts
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError
from counterpoint.notebook import notebook_html, rows_shown
from counterpoint.preference_row import Text

FATES = ("tied", "narrow", "same_text", "overruled", "usable")
"""What becomes of two candidates of a prompt: equal scores; a gap below ``min_gap``; the same
text; a human's mark on both or on neither in a prompt that has marks; none of these."""


@dataclass
class ScoredCounts:
    """What became of every row, candidate and two candidates.

    Args:
        name: the data set's name in messages.
        rows: rows read.
        dropped: rows and candidates left out, by error code.
        examples: the first message of each code.
        left_out: candidates that ``counterpoint score`` "vetoed", or left "unscored".
        prompts: prompts read, those without a pair included.
        candidates: candidates of these prompts.
        averaged: candidates that went into another of the same text.
        fates: every two candidates of a prompt, by ``FATES``.
        pairs: pairs made.
        without: prompts without a pair: "single" (less than two candidates), or the fate of the
            two that came nearest to a pair.
        human: pairs chosen by a human's mark.
        against_scores: those of them whose chosen has not the better score.
        repeated: pairs that are an earlier one of their prompt once more.
        contradicted: pairs of which the reverse is a pair of the same prompt too.
    """

    name: str
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    candidates: int = 0
    averaged: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    without: Counter[str] = field(default_factory=Counter)
    human: int = 0
    against_scores: int = 0
    repeated: int = 0
    contradicted: int = 0

    def drop(self, error: DataError) -> None:
        """Count what cannot be used under its code."""
        self.dropped[error.code] += 1
        self.examples.setdefault(error.code, str(error))

    def as_dict(self) -> dict[str, Any]:
        """The account as plain JSON types."""
        return {
            "name": self.name,
            "rows": self.rows,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": dict(sorted(self.examples.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "prompts": self.prompts,
            "candidates": self.candidates,
            "averaged": self.averaged,
            "candidate_pairs": {fate: self.fates[fate] for fate in FATES},
            "pairs": self.pairs,
            "prompts_without_a_pair": dict(sorted(self.without.items())),
            "human": self.human,
            "against_scores": self.against_scores,
            "repeated": self.repeated,
            "contradicted": self.contradicted,
        }

    def summary(self) -> str:
        """A few lines for people; what did not happen is not mentioned."""
        lines = [
            f"{self.name}: {self.rows:,} rows, {self.prompts:,} prompts, "
            f"{self.candidates:,} candidates"
        ]
        if self.dropped:
            codes = ", ".join(f"{n:,} × {code}" for code, n in self.dropped.most_common())
            lines.append(f"  dropped: {codes}")
            lines += [f"    for example {text}" for text in self.examples.values()]
        if self.left_out:
            lines.append(f"  left out: {_listed(self.left_out, _LEFT_OUT)}")
        if self.averaged:
            lines.append(f"  {self.averaged:,} candidates averaged into one of the same text")
        lines.append(f"  {self.fates.total():,} candidate pairs: {_listed(self.fates, _FATES)}")
        lines.append(f"  {self.pairs:,} pairs from {self._with_pairs():,} prompts")
        if self.without:
            count = self.without.total()
            lines.append(f"  {count:,} prompts without a pair: {_listed(self.without, _WITHOUT)}")
        if self.human:
            lines.append(
                f"  {self.human:,} pairs as a human marked them, {self.against_scores:,} of them "
                "not as the scores say"
            )
        if self.repeated or self.contradicted:
            lines.append(
                f"  {self.repeated:,} pairs repeat another, {self.contradicted:,} are contradicted "
                "by another, since a text has several scores: see average_same_text"
            )
        return "\n".join(lines)

    def _with_pairs(self) -> int:
        return self.prompts - self.without.total()


_FATES = {
    "tied": "of equal scores",
    "narrow": "below the least gap",
    "same_text": "of the same text",
    "overruled": "overruled by a human's mark",
    "usable": "usable",
}
_LEFT_OUT = {"vetoed": "vetoed by a requirement", "unscored": "without a score"}
_WITHOUT = {**_FATES, "single": "with less than two candidates", "usable": "not at the extremes"}


def _listed(counts: Counter[str], words: Mapping[str, str]) -> str:
    return ", ".join(f"{counts[key]:,} {text}" for key, text in words.items() if counts[key])


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
) -> ScoredPairs:
    """Make preference pairs of scored candidates.

    Args:
        rows: each a prompt with a list of candidates, or each a candidate; docs/data.md shows
            the shapes.
        rules: names of columns, and which candidates become pairs; None: the defaults.
        name: the data set's name in messages and counts.

    Returns:
        The pairs, the same for the same rows and rules, and the account of everything read.

    Raises:
        DataError: CP201, CP202, CP203, CP206 or CP215 for the first row or candidate that cannot
            be used if ``invalid_rows`` is "raise"; CP209 if there is no pair at all.
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
    for number, prompt in enumerate(read_prompts(counted, rules, drop)):
        pairs += _pairs_of(prompt, rules, counts, number)
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
    prompt: ScoredPrompt, rules: PairRules, counts: ScoredCounts, number: int
) -> list[dict[str, Any]]:
    counts.prompts += 1
    counts.candidates += len(prompt.candidates)
    candidates = prompt.candidates
    if rules.average_same_text:
        candidates = average_same_text(candidates)
        counts.averaged += len(prompt.candidates) - len(candidates)
    usable, fates = candidate_pairs(candidates, rules)
    counts.fates += fates
    taken = select(usable, candidates, rules, draw=f"{rules.seed or 0}:{number}")
    if not taken:
        counts.without[_nearest(fates)] += 1
    _count_taken(taken, candidates, counts)
    return [_record(prompt, candidates, pair, rules) for pair in taken]


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
        )
        for same in groups.values()
    )


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
    marks = [candidate.preferred for candidate in candidates]
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
    marked = any(candidate.preferred for candidate in candidates)
    scores = [rules.sign * candidate.score for candidate in candidates]
    winners = [s for s, c in zip(scores, candidates, strict=True) if c.preferred or not marked]
    best = [pair for pair in usable if scores[pair.chosen] == max(winners)]
    if rules.select == "best_worst":
        losers = [s for s, c in zip(scores, candidates, strict=True) if not c.preferred]
        return [pair for pair in best if scores[pair.rejected] == min(losers)][:1]
    of_one = [pair for pair in best if pair.chosen == min(p.chosen for p in best)]
    count = min(rules.per_prompt or 1, len(of_one))
    return random.Random(draw).sample(of_one, count)


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
    if rules.preferred is not None:
        record["human"] = chosen.preferred
    if rules.margin_scale is not None:
        # where a human overrules the scores, their gap is no reason to ask for more or for less
        record["margin"] = rules.margin_scale * max(0.0, pair.gap)
    return {**record, **prompt.kept}


def _completion(text: Text, rules: PairRules) -> Text:
    return f"{rules.completion_prefix}{text}" if isinstance(text, str) else text
