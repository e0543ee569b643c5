"""Where a text may be cut into pieces that are tokenized apart, without changing one token.

Three texts of a row share their prompt, and all texts share their words. With tokenizers whose
splitting of text is known, text may be cut behind a letter and before a space or one of a few
marks (``CUT``):

1. every rule of ``WORD_RULES`` ends a word there, whatever follows;
2. none looks behind, so that what follows is split as if the text began with it, and none but
   that for white space looks ahead;
3. words are tokenized apart, and Unicode's composition joins nothing over such a place.

So a text's ids are those of its pieces, and a piece that was met before need not be tokenized
again. With any other tokenizer a text is one piece. ``tokenize`` compares a row of every batch
with the ids of its whole texts, so that a wrong belief here is noticed.
"""

from __future__ import annotations

import json
import re
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

# letters that are letters in every version of Unicode: Latin, Cyrillic, kana, Han, Hangul
_LETTERS = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0410-\u044f"
    r"\u3041-\u3094\u30a1-\u30f4\u4e00-\u9fa5\uac00-\ud7a3"
)
# no part of any word, and composed with nothing before them
_MARKS = r" \n.,:;!?<\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f"
CUT = re.compile(f"(?<=[{_LETTERS}])(?=[{_MARKS}])")
"""The places between tokens, as empty matches."""

_PIECE = re.compile(f"(?s:.)[^{_MARKS}]*(?:(?<![{_LETTERS}])[{_MARKS}][^{_MARKS}]*)*")


def split(text: str) -> list[str]:
    """The pieces of a text, at least one: what ``CUT.split`` gives, in two thirds of its time."""
    return _PIECE.findall(text) or [text]


def may_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ``CUT`` is certain; False for a tokenizer that is slow, random or unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.BPE) or backend.model.dropout:
        return False
    normalizer = _state(backend.normalizer)
    if normalizer is not None and normalizer["type"] != "NFC":
        return False
    if not _splits_words(_state(backend.pre_tokenizer)):
        return False
    # added tokens are found before words are: they must not reach over a cut
    return not any(
        token.lstrip or token.rstrip or token.single_word or CUT.search(token.content)
        for token in backend.get_added_tokens_decoder().values()
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _splits_words(pre_tokenizer: Any) -> bool:
    """Whether text is split by GPT-2's rule, digits apart or not, or by one of ``WORD_RULES``."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return all(step["type"] == "Digits" for step in splits)
    return len(splits) == 1 and _is_word_rule(splits[0])


def _is_word_rule(step: Any) -> bool:
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in WORD_RULES
        and step["behavior"] == "Isolated"
        and not step["invert"]
    )
