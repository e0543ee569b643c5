"""What written texts are like: length, ending, repetition, variety, and the exact match.

1. Repetition is the share of a text's n-grams that it has had before, 1 - distinct / all, with
   n = 4 (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319), over tokens.
2. Variety is the share of distinct n-grams among those of all texts together (distinct-n of Li
   et al. 2016, arXiv:1510.03055), over tokens.

Both depend on the tokenizer, and distinct-n falls with the number of tokens: compare them between
models of one tokenizer and texts of like length.

Not here: writing the texts (``generation``), BLEU and chrF (``references``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from counterpoint.evaluation.bootstrap import Bootstrap, BootstrapEstimate, Ratio, Resampling, mean
from counterpoint.picture import Picture

REPEATED = 4
"""Tokens of the n-grams whose repetition counts."""

VARIETY = (1, 2)
"""Tokens of the n-grams whose variety counts."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote to one prompt.

    Args:
        kind: "greedy", "beams" or "sampled".
        prompt: as text, special tokens left out.
        text: what was written, likewise.
        reference: what a good completion would be, or None.
        ids: the tokens written, without the one that ends them.
        ended: whether the model ended by itself, not at the limit of length.
        pictures: that the prompt shows, in order.
    """

    kind: str
    prompt: str
    text: str
    reference: str | None
    ids: tuple[int, ...]
    ended: bool
    pictures: tuple[Picture, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether chance had a part in it."""
        return self.kind == "sampled"

    def as_entry(self) -> dict[str, Any]:
        """A line of samples.jsonl, less where it belongs in the run."""
        return {
            "kind": self.kind,
            "prompt": self.prompt,
            "completion": self.text,
            "reference": self.reference,
            "tokens": len(self.ids),
            "ended": self.ended,
            "repetition": repetition(self.ids),
        }


def repetition(ids: Sequence[int], n: int = REPEATED) -> float:
    """The share of n-grams that were there before.

    Args:
        ids: tokens of one text.
        n: tokens of an n-gram, at least 1.

    Returns:
        In [0, 1); 0 for a text of fewer than n tokens.
    """
    grams = _grams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def variety(texts: Iterable[Sequence[int]], n: int) -> float:
    """The share of distinct n-grams among all of several texts.

    Args:
        texts: tokens of each.
        n: tokens of an n-gram, at least 1.

    Returns:
        In [0, 1]; 0 where no text has n tokens.
    """
    grams = list(chain.from_iterable(_grams(ids, n) for ids in texts))
    return len(set(grams)) / len(grams) if grams else 0.0


def exact_match(text: str, reference: str) -> bool:
    """Whether a text is its reference, but for white space around both."""
    return text.strip() == reference.strip()


def statistics(completions: Sequence[Completion]) -> dict[str, float]:
    """What several completions are like.

    Args:
        completions: at least one.

    Returns:
        The means of ``text_ratios``, and ``distinct_1`` and ``distinct_2`` over all of them.
    """
    ids = [completion.ids for completion in completions]
    return {
        **{name: ratio.value for name, ratio in text_ratios(completions).items()},
        **{f"distinct_{n}": variety(ids, n) for n in VARIETY},
    }


def text_ratios(completions: Sequence[Completion]) -> dict[str, Ratio]:
    """The statistics that are means over completions, by name.

    ``length`` is in tokens; ``ended``, ``empty`` and ``exact_match`` are shares, the last one
    among those that have a reference, and left out where none has; ``repetition`` is a mean of
    shares.

    Args:
        completions: at least one.
    """
    found = {
        "length": mean([len(one.ids) for one in completions]),
        "ended": mean([one.ended for one in completions], is_share=True),
        "empty": mean([not one.text.strip() for one in completions], is_share=True),
        "repetition": mean([repetition(one.ids) for one in completions]),
    }
    has_one = np.array([one.reference is not None for one in completions], dtype=np.float64)
    if has_one.any():
        matches = [exact_match(one.text, one.reference or "") for one in completions]
        found["exact_match"] = Ratio(has_one * matches, has_one, is_share=True)
    return found


def text_differences(
    before: Sequence[Completion], after: Sequence[Completion], plan: Resampling
) -> dict[str, BootstrapEstimate]:
    """After minus before of each mean, with its interval over prompts.

    Args:
        before: of one model.
        after: of another, to the same prompts in the same order.
        plan: how intervals are made.
    """
    one, other = text_ratios(before), text_ratios(after)
    return Bootstrap(np.arange(len(after)), plan).differences(one, other)


def _grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
