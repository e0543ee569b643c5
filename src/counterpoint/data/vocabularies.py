"""Token ids as text, and which vocabulary names those of a source.

A Marian model may read one vocabulary and write another. Its tokenizer then names ids by the one
it writes, whatever they are of. Every other tokenizer has one vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def reader_of_sources(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """What decodes and names the ids of a prompt: the tokenizer itself, but for two vocabularies.

    Args:
        tokenizer: of any model. It is not changed.
    """
    if not getattr(tokenizer, "separate_vocabs", False):
        return tokenizer
    # not copy.copy, for which a Marian's tokenizer loads its sentence pieces anew
    reader: Any = object.__new__(type(tokenizer))
    vars(reader).update(vars(tokenizer))
    reader.decoder = {number: token for token, number in reader.encoder.items()}
    reader.target_encoder = reader.encoder
    reader.separate_vocabs = False  # else pieces of sources are joined as those of targets are
    return reader


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as text, special ones left out.

    Args:
        tokenizer: that knows them; for those of a prompt, what ``reader_of_sources`` gives.
        ids: the tokens.
    """
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
