"""Where a prompt may be cut so that what stands before the cut is encoded once, not three times.

A prompt is encoded alone, with the chosen and with the rejected completion, because tokens may
merge over the boundary; but far from the boundary all three give the same ids. With tokenizers
whose splitting of text is known, two places are certain to lie between tokens and to leave the
encoding on either side alone, whatever follows:

1. before a space between two ASCII letters: no rule of ``WORD_RULES`` looks behind, none lets a
   piece of text run on from a letter into a space, and none but white space looks ahead;
2. before a control token such as ``<|im_start|>``, at which text is split before all else.

With any other tokenizer there is no cut. ``tokenize`` checks a row of every batch against the
encoding of its whole text, so that a wrong belief here costs time and never a token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase

_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PLURAL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
)

WORD_RULES = frozenset(
    {
        _PLURAL + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _SYMBOLS,  # Qwen2, Qwen3
        _PLURAL + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _SYMBOLS,  # Llama 3
        _PLURAL + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Qwen3.5
        _CASED % ("", "") + r"\p{N}|" + _SLASHED,  # Mistral's Tekken
        _CASED % (f"{_PLURAL}?", f"{_PLURAL}?") + r"\p{N}{1,3}|" + _SLASHED,  # o200k
    }
)
"""How known byte-level tokenizers split text into words; GPT-2's own rule needs no entry."""

_LAST_WORD = re.compile(r".*[A-Za-z]( )[A-Za-z]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HeadCut:
    """What is known of a tokenizer's splitting of text.

    Args:
        words: a space between two ASCII letters is a place to cut.
        marks: control tokens before which text may be cut.
    """

    words: bool = False
    marks: tuple[str, ...] = ()

    def find(self, prompt: str) -> int:
        """The last place in a prompt where it may be cut, in characters; 0: none."""
        place = max((prompt.rfind(mark) for mark in self.marks), default=0)
        if self.words:
            word = _LAST_WORD.match(prompt, max(place, 0))
            place = place if word is None else word.start(1)
        return max(place, 0)


def head_cut(tokenizer: PreTrainedTokenizerBase) -> HeadCut:
    """What is certain of a tokenizer; nothing for one that is slow, random or unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.BPE) or backend.model.dropout:
        return HeadCut()
    normalizer = _state(backend.normalizer)
    if normalizer is not None and normalizer["type"] != "NFC":
        return HeadCut()
    if not _splits_words(_state(backend.pre_tokenizer)):
        return HeadCut()
    added = list(backend.get_added_tokens_decoder().values())
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return HeadCut()
    contents = [token.content for token in added]
    words = not any(re.search("[A-Za-z] [A-Za-z]", content) for content in contents)
    special = [token.content for token in added if token.special and not token.normalized]
    return HeadCut(words, _standing_alone(special, contents))


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _splits_words(pre_tokenizer: Any) -> bool:
    """Whether text is split into words by GPT-2's rule or one of ``WORD_RULES``, then bytes."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if not splits:
        return bool(last["use_regex"])
    return len(splits) == 1 and not last["use_regex"] and _is_word_rule(splits[0])


def _is_word_rule(step: Any) -> bool:
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in WORD_RULES
        and step["behavior"] == "Isolated"
        and not step["invert"]
    )


def _standing_alone(marks: list[str], contents: list[str]) -> tuple[str, ...]:
    """The marks into which no other added token can reach from before them in a text."""
    endings = {other[at:] for other in contents for at in range(len(other))}
    everything = "\n".join(contents)
    return tuple(
        mark
        for mark in marks
        if everything.count(mark) == 1
        and endings.isdisjoint(mark[:length] for length in range(1, len(mark)))
    )
