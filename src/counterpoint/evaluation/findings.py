"""What an evaluation finds: of one model, or of two and of their difference.

    scores of pairs   ──preferences──▶ shares, margins, intervals ──┐
    texts written     ──texts, references──▶ what they are like ────┴──▶ tables, JSON

Not here: running a model (``generation``, the trainer), and how a table is drawn (``table``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from counterpoint.evaluation import references, table, texts
from counterpoint.evaluation.bootstrap import SOURCE, Resampling
from counterpoint.evaluation.preferences import Comparison, Preferences, compare, judge
from counterpoint.evaluation.scored_texts import ScoredChange, score_changes, score_means
from counterpoint.evaluation.scores import PairScores, aligned
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.without_pictures import PictureEffect, picture_effect
from counterpoint.runlog import versions

BEFORE, AFTER = "before", "after"
OTHER_TOKENS = (
    "  The two models cut these texts into different tokens: numbers a token, and",
    "  rewards that are means over tokens, are of two measures. Accuracies are not.",
)


@dataclass(frozen=True, slots=True)
class Side:
    """What was found of one model.

    Args:
        objective: as a formula.
        losses: of the objective, by set.
        scores: of each pair, by set.
        blank: of each pair that shows pictures, with blank ones in their place, by set.
        written: completions by set; those that are not sampled, then sampled ones.
        scored: what scorers say of them, by set and way of writing, and by scorer.
    """

    objective: str
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, PairScores] = field(default_factory=dict)
    blank: dict[str, PairScores] = field(default_factory=dict)
    written: dict[str, list[Completion]] = field(default_factory=dict)
    scored: dict[tuple[str, str], dict[str, list[float | None]]] = field(default_factory=dict)


class Findings:
    """The statistics of one model, or of two and their difference.

    Args:
        sides: what was found of each model, by ``AFTER`` and, of two, ``BEFORE``.
        plan: of the bootstrap that makes the intervals.
        metrics: scores against references to compute.
        bleu_tokenizer: how BLEU finds words.
        penalties: names of scorers whose scores are better when lower.
    """

    def __init__(
        self,
        sides: Mapping[str, Side],
        plan: Resampling,
        metrics: Sequence[str],
        bleu_tokenizer: str,
        penalties: Collection[str] = (),
    ) -> None:
        self.sides, self.plan, self.metrics = sides, plan, metrics
        self.bleu_tokenizer = bleu_tokenizer
        self.signatures: dict[str, str] = {}
        self.judged: dict[str, dict[str, Preferences]] = {
            who: {name: judge(scores, self.plan) for name, scores in side.scores.items()}
            for who, side in sides.items()
        }
        self.pictures: dict[str, dict[str, PictureEffect]] = {
            who: {
                name: picture_effect(side.scores[name], blank, self.plan)
                for name, blank in side.blank.items()
            }
            for who, side in sides.items()
        }
        self.compared: dict[str, Comparison] = {}
        if BEFORE in sides:
            before, after = sides[BEFORE].scores, sides[AFTER].scores
            self.compared = {n: compare(before[n], after[n], self.plan) for n in after}
        self.texts = {who: dict(self._text_statistics(side)) for who, side in sides.items()}
        self.scored = {
            who: {key: score_means(found, plan) for key, found in side.scored.items()}
            for who, side in sides.items()
        }
        self.score_changes: dict[tuple[str, str], dict[str, ScoredChange]] = {
            key: score_changes(sides[BEFORE].scored[key], found, plan, penalties)
            for key, found in sides[AFTER].scored.items()
            if self._same_prompts(key)
        }

    def _text_statistics(self, side: Side) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
        for key, part in by_kind(side).items():
            found = texts.statistics(part)
            with_one = [one for one in part if one.reference is not None]
            if with_one and self.metrics:
                scores = references.reference_scores(
                    [one.text for one in with_one],
                    [str(one.reference) for one in with_one],
                    self.metrics,
                    self.bleu_tokenizer,
                )
                found |= {name: score.value for name, score in scores.items()}
                self.signatures |= {name: score.signature for name, score in scores.items()}
            yield key, found

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON; numbers may be nan."""
        content: dict[str, Any] = {
            "objective": self.sides[AFTER].objective,
            "intervals": {"method": SOURCE, **asdict(self.plan)},
            "signatures": self.signatures,
            "versions": versions(),
        }
        for who, side in self.sides.items():
            sets = {
                name: {"loss": side.losses[name], **found.as_dict()}
                for name, found in self.judged[who].items()
            }
            for name, effect in self.pictures[who].items():
                sets[name]["pictures"] = effect.as_dict()
            written: dict[str, Any] = {}
            for (name, kind), values in self.texts[who].items():
                written.setdefault(name, {})[kind] = values
            content[who] = {"sets": sets, "texts": written}
            if self.scored[who]:
                content[who]["scored"] = _nested(self.scored[who])
        if self.score_changes:
            content["score_changes"] = _nested(self.score_changes)
        if BEFORE in self.sides:
            content["changes"] = {n: asdict(found) for n, found in self.compared.items()}
        return content

    def lines(self) -> Iterator[str]:
        """All of it as tables."""
        level = self.plan.level
        yield from self.sides[AFTER].objective.splitlines()
        yield ""
        after = self.sides[AFTER]
        for name, found in self.judged[AFTER].items():
            yield from table.preference_table(name, found, after.losses[name], level)
            yield ""
            if name in self.pictures[AFTER]:
                yield from table.picture_table(name, self.pictures[AFTER][name], level)
                yield ""
            if name in self.compared:
                yield from table.comparison_table(name, self.compared[name], level)
                if not self._cut_alike(name):
                    yield from OTHER_TOKENS
                yield ""
        for (name, kind), part in by_kind(after).items():
            yield from self._text_lines(name, kind, part)
        if BEFORE in self.sides:
            yield table.NOT_ZERO
        yield f"intervals: {self.plan.resamples:,} draws,"
        yield f"  {SOURCE}"
        yield from (f"{name}: {signature}" for name, signature in self.signatures.items())
        if "bleu" in self.metrics and self.texts[AFTER] and "bleu" not in self.signatures:
            yield "BLEU is left out: no reference has four words in a row"

    def _cut_alike(self, name: str) -> bool:
        before, after = aligned(self.sides[BEFORE].scores[name], self.sides[AFTER].scores[name])
        return bool((before.chosen_tokens == after.chosen_tokens).all())

    def _text_lines(self, name: str, kind: str, part: list[Completion]) -> Iterator[str]:
        values = self.texts[AFTER][name, kind]
        title = f"{name}, {kind}: {len(part):,} prompts"
        shown = {AFTER: part}
        other = by_kind(self.sides[BEFORE])[name, kind] if BEFORE in self.sides else None
        if other is not None and self._same_prompts((name, kind)):
            shown = {BEFORE: other, AFTER: part}
            differences = texts.text_differences(other, part, self.plan)
            yield from table.text_comparison_table(
                title, self.texts[BEFORE][name, kind], values, differences, self.plan.level
            )
        else:
            yield from table.text_table(title, values)
        yield ""
        if (name, kind) in self.scored[AFTER]:
            means = {who: self.scored[who][name, kind] for who in shown}
            changes = self.score_changes.get((name, kind), {})
            yield from table.score_table(title, means, changes, self.plan.level)
            yield ""
        yield from table.shown_texts(shown)

    def _same_prompts(self, key: tuple[str, str]) -> bool:
        """Whether there are two models, and both have written to the same prompts."""
        if BEFORE not in self.sides:
            return False
        before, after = (by_kind(self.sides[who]).get(key, []) for who in (BEFORE, AFTER))
        return [one.prompt for one in before] == [one.prompt for one in after]


def _nested(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """By set, way of writing and scorer, for JSON."""
    content: dict[str, Any] = {}
    for (name, kind), scorers in found.items():
        content.setdefault(name, {})[kind] = {one: asdict(made) for one, made in scorers.items()}
    return content


def by_kind(side: Side) -> dict[tuple[str, str], list[Completion]]:
    """Completions by set and way of writing.

    Args:
        side: of one model.
    """
    found: dict[tuple[str, str], list[Completion]] = {}
    for name, completions in side.written.items():
        for one in completions:
            found.setdefault((name, one.kind), []).append(one)
    return found
