"""Texts become token ids, with the boundary between prompt and completion found in tokens.

1. All texts of a batch of rows go through the tokenizer in one call, without special tokens;
   the greater part of a prompt once where that is certain to change nothing (``heads``).
2. The prompt is the longest common start of the ids of the prompt alone, with the chosen and
   with the rejected completion. A token that merges over the boundary thus belongs to the
   completions, which is where a model that generates would meet it.
3. Exactly one BOS stands at the start where the tokenizer has one.
4. Exactly one EOS ends each completion. Where a template writes white space after it, that is
   cut off: nothing generated ever follows EOS.

Not here: length limits (``truncate``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import Rendered
from counterpoint.data.heads import HeadCut, head_cut
from counterpoint.errors import ModelError

Ids3 = tuple[list[int], list[int], list[int]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a row before any limit on length.

    Args:
        prompt: ids before the boundary, BOS included.
        chosen: ids after the boundary, EOS included.
        rejected: the same for the other completion.
        moved: tokens of the prompt's own encoding that the boundary left to the completions.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    moved: int


def tokenize(
    rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, cut: HeadCut | None = None
) -> list[Tokens]:
    """Encode a batch of rows in one call of the tokenizer.

    Args:
        rows: rendered rows.
        tokenizer: fast or slow; its BOS and EOS are used, its padding is not.
        cut: ``heads.head_cut(tokenizer)``, if it is known already.

    Returns:
        One entry a row, in order.

    Raises:
        ModelError: CP302 if the tokenizer has no EOS token.
    """
    ending = _Ending(end_of_sequence(tokenizer), tokenizer)
    bos = tokenizer.bos_token_id
    encoded = encode_threefold(rows, tokenizer, head_cut(tokenizer) if cut is None else cut)
    return [_assemble(*ids, bos=bos, ending=ending) for ids in encoded]


def encode_threefold(
    rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, cut: HeadCut
) -> list[Ids3]:
    """Ids of each row's prompt, prompt with chosen, and prompt with rejected.

    Args:
        rows: rendered rows.
        tokenizer: fast or slow.
        cut: where its prompts may be cut to encode what they share once.

    Returns:
        The three lists of each row, equal to encoding the three texts whole.
    """
    heads = [_shared_head(row, cut) for row in rows]
    texts = [text for row, head in zip(rows, heads, strict=True) for text in _pieces(row, head)]
    proven = next((place for place, head in enumerate(heads) if head), None)
    whole = [] if proven is None else _pieces(rows[proven], 0)[1:]
    ids = encode([*texts, *whole], tokenizer)
    joined: list[Ids3] = [
        (ids[at] + ids[at + 1], ids[at] + ids[at + 2], ids[at] + ids[at + 3])
        for at in range(0, len(texts), 4)
    ]
    if proven is not None and joined[proven] != tuple(ids[len(texts) :]):
        logger.warning("This tokenizer cannot encode prompts in parts; each is encoded three times")
        return encode_threefold(rows, tokenizer, HeadCut())
    return joined


def _shared_head(row: Rendered, cut: HeadCut) -> int:
    head = cut.find(row.prompt)
    start = row.prompt[:head]
    return head if row.chosen.startswith(start) and row.rejected.startswith(start) else 0


def _pieces(row: Rendered, head: int) -> tuple[str, str, str, str]:
    return row.prompt[:head], row.prompt[head:], row.chosen[head:], row.rejected[head:]


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's EOS token.

    Raises:
        ModelError: CP302 if it has none.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "CP302",
            "the tokenizer has no end-of-sequence token, so no completion could learn to end. "
            "Set tokenizer.eos_token to the token that ends a turn.",
        )
    return int(tokenizer.eos_token_id)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each text, no special tokens added, nothing cut or padded; equal texts go once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if not places:
        return []
    encoded = tokenizer(
        list(places),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return [ids[places[text]] for text in texts]


class _Ending:
    """Gives completions their one EOS; remembers which tails are white space."""

    def __init__(self, eos: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.eos = eos
        self._tokenizer = tokenizer
        self._blank: dict[tuple[int, ...], bool] = {(): True}

    def __call__(self, ids: list[int]) -> list[int]:
        if self.eos not in ids:
            return [*ids, self.eos]
        last = len(ids) - 1 - ids[::-1].index(self.eos)
        if self._is_blank(tuple(ids[last + 1 :])):
            while last > 0 and ids[last - 1] == self.eos:
                last -= 1
            return ids[: last + 1]
        return [*ids, self.eos]

    def _is_blank(self, tail: tuple[int, ...]) -> bool:
        if tail not in self._blank:
            if len(tail) > 8:  # no template writes so much after a turn: do not decode answers
                return False
            self._blank[tail] = not self._tokenizer.decode(list(tail)).strip()
        return self._blank[tail]


def _assemble(
    prompt: list[int], chosen: list[int], rejected: list[int], *, bos: int | None, ending: _Ending
) -> Tokens:
    if bos is not None:
        prompt, chosen, rejected = (_without_bos(ids, bos) for ids in (prompt, chosen, rejected))
    end = _common(prompt, chosen, rejected)
    start = [] if bos is None else [bos]
    return Tokens(
        prompt=start + prompt[:end],
        chosen=ending(chosen[end:]),
        rejected=ending(rejected[end:]),
        moved=len(prompt) - end,
    )


def _without_bos(ids: list[int], bos: int) -> list[int]:
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return ids[start:] if start else ids


def _common(prompt: list[int], chosen: list[int], rejected: list[int]) -> int:
    """Length of the longest common start of the three."""
    end = len(prompt)
    if chosen[:end] == prompt and rejected[:end] == prompt:  # nearly always, and at C speed
        return end
    together = zip(prompt, chosen, rejected, strict=False)
    return next(
        (n for n, (p, c, r) in enumerate(together) if not p == c == r),
        min(end, len(chosen), len(rejected)),
    )
