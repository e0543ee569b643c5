"""What became of every scored row, candidate and two candidates: counts, and their words.

Not here: which two become a pair (``scored``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from counterpoint.errors import DataError

FATES = ("tied", "narrow", "same_text", "overruled", "usable")
"""What becomes of two candidates of a prompt: equal scores; a gap below ``min_gap``; the same
text; a mark on both or on neither in a prompt that has marks; none of these."""


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
        longer: characters that chosen has beyond rejected, over all pairs, where lengths decided.
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
    longer: int = 0

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
            "longer": self.longer,
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
        if self.longer and self.pairs:
            mean = self.longer / self.pairs
            lines.append(
                f"  chosen is {abs(mean):.2g} characters {'longer' if mean > 0 else 'shorter'} "
                "than rejected on average"
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
    "overruled": "overruled by a human's mark or the reference",
    "usable": "usable",
}
_LEFT_OUT = {"vetoed": "vetoed by a requirement", "unscored": "without a score"}
_WITHOUT = {**_FATES, "single": "with less than two candidates", "usable": "not at the extremes"}


def _listed(counts: Counter[str], words: Mapping[str, str]) -> str:
    return ", ".join(f"{counts[key]:,} {text}" for key, text in words.items() if counts[key])
