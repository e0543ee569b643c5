"""What is worrying about the rounds of a loop: collapse, and a score that is won at another's cost.

A loop optimises what its scorer sees. Where that is not what is meant, the score rises while
something else falls; where candidates become one text, no pair says anything any more.

Not here: what a code means (the doctor's table), counting (``figures``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from counterpoint.doctor.findings import Finding, find
from counterpoint.loop.figures import RoundFigures, ScoredTexts

FEW = 1.5
"""Unlike texts of a prompt, in the mean, below which pairs can hardly be made."""

AWAY = 1.5
"""Mean length over that of the first file, or the other way round."""

TIED = 0.5
"""Share of prompts whose scores say nothing of their texts."""

FALL = {"exact_match": 0.02, "chrf": 1.0, "bleu": 1.0}
"""By how much a measure without an interval has to fall; in its own unit."""


def worries_of(figures: Sequence[RoundFigures], penalties: Set[str] = frozenset()) -> list[Finding]:
    """Everything that is worrying, round by round.

    Args:
        figures: of all rounds, from the first model on.
        penalties: names of the scorers of whose scores less is better.
    """
    return list(_worries(figures, penalties))


def _worries(figures: Sequence[RoundFigures], penalties: Set[str]) -> Iterator[Finding]:
    first: dict[str, ScoredTexts] = {}
    for before, now in zip([None, *figures], figures, strict=False):
        for name, texts in (("candidates", now.drawn), ("held_out", now.held)):
            if texts is not None:
                yield from _of_texts(f"round {now.number}, {name}", texts, first.get(name))
                first.setdefault(name, texts)
        if before is not None:
            yield from _at_a_cost(before, now, penalties)


def _of_texts(where: str, texts: ScoredTexts, first: ScoredTexts | None) -> Iterator[Finding]:
    each = texts.texts / texts.prompts
    unlike = texts.distinct * each
    if each >= 2 * FEW and unlike < FEW:
        seen = f"{where}: of {each:.3g} texts to a prompt {unlike:.2f} are unlike each other."
        yield find("CW446", seen)
    if first is not None and first.tokens > 0:
        times = texts.tokens / first.tokens
        if not 1 / AWAY <= times <= AWAY:
            seen = f"{where}: a text has {texts.tokens:.1f} tokens, at first {first.tokens:.1f}."
            yield find("CW447", seen)
    if texts.tied > TIED:
        seen = f"{where}: all scores of {texts.tied:.0%} of the prompts are the same."
        yield find("CW448", seen)


def _at_a_cost(before: RoundFigures, now: RoundFigures, penalties: Set[str]) -> Iterator[Finding]:
    if now.wins is None or not now.wins.low > 0.5:
        return
    worse = list(_worse(before, now, penalties))
    if worse:
        yield find(
            "CW449",
            f"round {now.number} wins {now.wins.value:.0%} of comparisons with the one before, "
            f"and {'; '.join(worse)}.",
        )


def _worse(before: RoundFigures, now: RoundFigures, penalties: Set[str]) -> Iterator[str]:
    """What is worse than in the round before, by more than chance would have it."""
    estimates = [
        {("accuracy", name): one for name, one in figures.accuracy.items()}
        | {
            ("scorer", name): one
            for name, one in (figures.held.scorers if figures.held else {}).items()
        }
        for figures in (before, now)
    ]
    for (kind, name), old in estimates[0].items():
        new = estimates[1].get((kind, name))
        if new is None:
            continue
        less_is_better = kind == "scorer" and name in penalties
        if new.low > old.high if less_is_better else new.high < old.low:
            what = "more" if less_is_better else "less"
            yield f"{what} is {name}: {new.value:.4g} after {old.value:.4g}"
    for name, was in before.measures.items():
        least = FALL.get(name.rpartition(", ")[2])
        if least is not None and now.measures.get(name, was) < was - least:
            yield f"less is {name}: {now.measures[name]:.4g} after {was:.4g}"
