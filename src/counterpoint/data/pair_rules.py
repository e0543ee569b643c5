"""PairRules: where scored candidates stand in a row, and which of them become pairs.

A line per option with its meaning, as in ``config``; ``counterpoint pairs --help`` reads it, and
so nothing slow is imported here.

Not here: reading rows (``candidates``), choosing pairs (``scored``).
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.preference_row import INVALID_ROWS

SELECTS = ("best_worst", "all", "best_random", "length_balanced")

PENALTY = re.compile(
    r"mqm|metricx|ter|wer|cer|ppl|perplexity|loss|nll|errors?|penalty|cost|rank", re.IGNORECASE
)
"""Names of scores that are better when lower; the other way round every pair would be wrong."""

OWN = ("prompt", "chosen", "rejected", "score_gap", "chosen_score", "rejected_score")
"""The columns that every pair has."""

FROM = ("chosen_from", "rejected_from")
"""Those of pairs whose candidates say which they are: model, row and number."""


def _option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, slots=True)
class PairRules:
    """How scored candidates become preference pairs; every field's help states its meaning.

    Raises:
        ConfigError: CP102 or CP103 for a value that none can be, CP104 for options that
            contradict each other, CP107 where a score named as a penalty has no direction.
    """

    select: str = _option(
        "best_worst",
        "Which pairs of a prompt. best_worst: the best candidate against the worst, the middle "
        "dropped (ALMA's rule, arXiv:2401.08417). all: every two that may be a pair, the widest "
        "gap first. best_random: the best against one drawn from the others. "
        "length_balanced: of the pairs whose gap is at least half of the prompt's widest, the one "
        "that keeps chosen and rejected of all pairs so far nearest to the same length.",
        SELECTS,
    )
    min_gap: float = _option(
        0.0, "Least gap of scores, >= 0, in units of the score; equal scores are never a pair."
    )
    lower_is_better: bool | None = _option(
        None,
        "The score is a penalty. null: higher is better; refused for scores called mqm, ter, "
        "loss and the like, which have to be told.",
    )
    preferred: str | None = _option(
        None,
        "Field that marks what a human preferred (true, yes or 1). In a prompt with a mark only "
        "marked candidates are chosen and only the others rejected, whatever scores and min_gap "
        "say.",
    )
    reference: str | None = _option(
        None,
        "Column with a reference that is one more candidate of its prompt, better than all others "
        "unless reference_score says otherwise.",
    )
    reference_score: str | None = _option(
        None, "Column with the reference's own score; null: it outranks every candidate."
    )
    per_prompt: int | None = _option(
        None, "Most pairs of a prompt, >= 1. null: all of them; with best_random, one."
    )
    seed: int | None = _option(None, "Seed of best_random, >= 0; null: 0.")
    average_same_text: bool = _option(
        False,
        "Make candidates of the same text one, with the mean of their scores. Otherwise raters "
        "who disagreed on a text can give pairs that contradict each other.",
    )
    candidates: str | None = _option(
        None,
        "Column with a row's list of candidates. null: candidates, completions or responses if "
        "a row has such a list, else each row is a candidate.",
    )
    text: str | None = _option(
        None,
        "Field with a candidate's text. null: the first there is of text, completion, response, "
        "output, translation.",
    )
    score: str = _option(
        "score", "Field with a candidate's score; beside a list of texts, a list of numbers."
    )
    prompt: str = _option("prompt", "Column with the prompt, text or messages.")
    prompt_template: str | None = _option(
        None,
        "The prompt as text with columns in braces, as in 'Translate: {source}'. Takes the place "
        "of a column.",
    )
    group: str | None = _option(
        None,
        "Where each row is a candidate: column whose value the candidates of one prompt share. "
        "null: the prompt itself.",
    )
    completion_prefix: str = _option(
        "", "Text put before each completion, such as the space between prompt and completion."
    )
    margin_scale: float | None = _option(
        None,
        "Write a column margin of this times the gap, > 0. Training reads it: nats of scaled "
        "reward that chosen must win by on top of the loss's own. null: no such column.",
    )
    keep: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of the row to copy to its pairs, such as id or system."},
    )
    invalid_rows: str = _option(
        "raise",
        "What to do with rows and candidates that cannot be used: stop at the first, or drop and "
        "count them.",
        INVALID_ROWS,
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before any row is read."""
        for name, allowed in (("select", SELECTS), ("invalid_rows", INVALID_ROWS)):
            if getattr(self, name) not in allowed:
                text = f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}."
                raise ConfigError("CP102", text)
        self._check_numbers()
        self._check_direction()
        self._check_together()
        if self.prompt_template is not None:
            template_parts(self.prompt_template)

    @property
    def sign(self) -> int:
        """What a score is multiplied by to be better when higher: 1 or -1."""
        return -1 if self.lower_is_better else 1

    def _check_numbers(self) -> None:
        scale, most, seed = self.margin_scale, self.per_prompt, self.seed
        wanted = {
            "min_gap": (0 <= self.min_gap < math.inf, "a finite number, at least 0"),
            "margin_scale": (scale is None or 0 < scale < math.inf, "a finite number above 0"),
            "per_prompt": (most is None or most >= 1, "a whole number, at least 1"),
            "seed": (seed is None or seed >= 0, "a whole number, at least 0"),
        }
        for name, (right, what) in wanted.items():
            if not right:
                raise ConfigError("CP103", f"{name}={getattr(self, name)!r} should be {what}.")

    def _check_direction(self) -> None:
        if self.lower_is_better is None and PENALTY.fullmatch(self.score):
            raise ConfigError(
                "CP107",
                f"lower_is_better is missing: a score called {self.score} is usually a penalty, "
                "and the wrong direction would turn every pair round. Set it to true, or to "
                "false if higher is better.",
            )

    def _check_together(self) -> None:
        if self.seed is not None and self.select != "best_random":
            raise ConfigError("CP104", f"seed does nothing with select={self.select}.")
        if self.per_prompt is not None and self.select in ("best_worst", "length_balanced"):
            raise ConfigError(
                "CP104",
                f"per_prompt does nothing with select={self.select}, which gives at most one pair "
                "a prompt; choose select=all or best_random.",
            )
        if self.reference_score is not None and self.reference is None:
            raise ConfigError(
                "CP104", "reference_score does nothing without reference, its text's column."
            )
        if self.prompt_template is not None and self.prompt != "prompt":
            raise ConfigError("CP104", "prompt and prompt_template are both given; drop one.")
        if self.group is not None and self.candidates is not None:
            raise ConfigError(
                "CP104",
                "group says that each row is a candidate, candidates that a row holds a list of "
                "them; drop one.",
            )
        made = {*OWN, *FROM, *(["margin"] if self.margin_scale else []), "human"}
        taken = [name for name in self.keep if name in made]
        if taken:
            raise ConfigError("CP104", f"keep={taken[0]}: pairs have a column of that name.")


@cache
def template_parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """A prompt template as literal text, each followed by a column's name or None.

    Args:
        template: text with names in braces; doubled braces stand for themselves.

    Raises:
        ConfigError: CP103 where the braces hold anything but a name, or no column is named.
    """
    shown = f"prompt_template={template!r}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError("CP103", f"{shown}: {error}; write {{{{ for a brace.") from error
    for _, name, form, conversion in parts:
        # columns only: no attributes, no indices, nothing that runs code of a value
        if name is not None and (not name or form or conversion or any(c in name for c in ".[")):
            raise ConfigError(
                "CP103", f"{shown}: braces should hold a column's name, as in {{source}}."
            )
    if all(name is None for _, name, _, _ in parts):
        raise ConfigError(
            "CP103", f"{shown} names no column, so that all prompts would be the same."
        )
    return tuple((literal, name) for literal, name, _, _ in parts)
