"""Texts become token ids, with the boundary between prompt and completion found in tokens.

1. Texts are cut into pieces where that is certain to change no token (``pieces``). What the
   three texts of a row begin with is encoded once, and so is a piece that comes again.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from counterpoint.data.bounds import Panic, panics_caught
from counterpoint.data.chat import Rendered
from counterpoint.data.pieces import may_be_cut, split
from counterpoint.errors import ModelError

LONGEST_KNOWN = 32
"""Characters of the longest piece that is remembered after its batch; others rarely recur."""

MOST_KNOWN = 200_000
"""Pieces remembered, some 40 MB of them; above that, all are forgotten."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a row before any limit on length.

    Args:
        prompt: ids before the boundary, BOS included.
        chosen: ids after the boundary, EOS included.
        rejected: the same for the other completion.
        moved: tokens of the prompt's own encoding that the boundary left to the completions.
        chosen_said: the assistant's turns of a chosen completion of several, as spans of its ids
            (``turns.Said``).
        rejected_said: the same of the rejected one.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    moved: int
    chosen_said: tuple[tuple[int, int], ...] | None = ()
    rejected_said: tuple[tuple[int, int], ...] | None = ()


class RowIds(NamedTuple):
    """The ids of a row's three texts; ``head`` and one of the others make one of them."""

    head: list[int]
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class PairTokenizer:
    """Tokenizes rows, batch after batch; what comes out does not depend on what came before.

    Args:
        tokenizer: fast or slow; its BOS and EOS are used, its padding is not.
        cut: whether texts may be cut into pieces; None: as ``may_be_cut`` says.

    Raises:
        ModelError: CP302 if the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cut: bool | None = None) -> None:
        self.tokenizer = tokenizer
        self.cut = may_be_cut(tokenizer) if cut is None else cut
        self.bos = tokenizer.bos_token_id
        self._ending = _Ending(end_of_sequence(tokenizer), tokenizer)
        self._known: dict[str, list[int]] = {}

    def __call__(self, rows: Sequence[Rendered]) -> list[Tokens]:
        """Encode a batch of rendered rows, one entry a row, in order."""
        return [_assemble(ids, self.bos, self._ending) for ids in self.encode(rows)]

    def encode(self, rows: Sequence[Rendered]) -> list[RowIds]:
        """Ids of each row's three texts, equal to encoding the three whole."""
        pieces = [self._pieces(row) for row in rows]
        new = self._learn(chain.from_iterable(chain.from_iterable(pieces)))
        of = self._known.__getitem__
        ids = [
            RowIds(*[list(chain.from_iterable(map(of, part))) for part in parts])
            for parts in pieces
        ]
        self._forget(new)
        proven = next((n for n, parts in enumerate(pieces) if sum(map(len, parts)) > 3), None)
        if proven is not None and not self._is_whole(rows[proven], ids[proven]):
            logger.warning("This tokenizer cannot encode texts in pieces; each is encoded whole")
            self.cut = False
            self._known.clear()
            return self.encode(rows)
        return ids

    def said(
        self, text: str, spans: Sequence[tuple[int, int]], prompt: int, completion: Sequence[int]
    ) -> tuple[tuple[int, int], ...] | None:
        """Spans of a text as spans of the completion that it ends with.

        A token that reaches over a place in the text belongs to what comes after it, as at the
        prompt's end. A turn ends with its EOS: white space after it is no part of the turn.

        Args:
            text: prompt and completion.
            spans: in order and apart; the last one reaches to the completion's end.
            prompt: ids of the prompt, BOS included.
            completion: ids of the completion, EOS included.

        Returns:
            None where the text's ids are not those of prompt and completion.
        """
        whole, places = self._places(text, [place for span in spans for place in span])
        given = len(whole) - len(_without_bos(whole, self.bos)) if self.bos is not None else 0
        base = prompt - (self.bos is not None) + given
        # its own EOS may have been added, and white space after it cut off
        if whole[base : base + len(completion) - 1] != list(completion[:-1]):
            return None
        size = len(completion)
        inside = [min(max(place - base, 0), size) for place in places]
        found = []
        for start, end in zip(inside[::2], [*inside[1:-1:2], size], strict=True):
            ids = list(completion[start:end])
            stop = start + min(len(ids), len(self._ending(ids)))
            eos = self._ending.eos
            if 0 < stop < size and completion[stop] == eos != completion[stop - 1]:
                stop += 1
            found.append((start, stop))
        return tuple(found)

    def _places(self, text: str, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids of a text, and how many of them lie before each of some places in it."""
        texts = [text, *(text[:place] for place in places)]
        pieces = [split(one) if self.cut else [one] for one in texts]
        new = [*dict.fromkeys(chain.from_iterable(pieces))]
        ids = dict(zip(new, encode(new, self.tokenizer), strict=True))
        whole, *starts = [list(chain.from_iterable(map(ids.__getitem__, one))) for one in pieces]
        return whole, [_common(start, whole, whole) for start in starts]

    def _pieces(self, row: Rendered) -> tuple[list[str], list[str], list[str], list[str]]:
        """Pieces that the three texts of a row begin with, and those that follow in each."""
        if not self.cut:
            return [], [row.prompt], [row.chosen], [row.rejected]
        *head, rest = split(row.prompt)
        at = len(row.prompt) - len(rest)
        start = row.prompt[:at]
        if not (row.chosen.startswith(start) and row.rejected.startswith(start)):
            return [], [*head, rest], split(row.chosen), split(row.rejected)
        return head, [rest], split(row.chosen[at:]), split(row.rejected[at:])

    def _learn(self, pieces: Iterable[str]) -> list[str]:
        """Encode the pieces that are not known, and return them."""
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._known]
        self._known.update(zip(new, encode(new, self.tokenizer), strict=True))
        return new

    def _forget(self, new: Iterable[str]) -> None:
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
            return
        for piece in new:
            if len(piece) > LONGEST_KNOWN:
                del self._known[piece]

    def _is_whole(self, row: Rendered, ids: RowIds) -> bool:
        """Whether the ids of pieces are those of the whole texts."""
        whole = encode([row.prompt, row.chosen, row.rejected], self.tokenizer)
        return whole == [ids.head + rest for rest in ids[1:]]


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
    """Ids of each text, no special tokens added, nothing cut or padded.

    Raises:
        ModelError: CP312 where the tokenizer's own code gives up.
    """
    return guarded(tokenizer, texts, add_special_tokens=False)


def guarded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | None = None,
    *,
    text_target: Sequence[str] | None = None,
    add_special_tokens: bool,
) -> list[list[int]]:
    """Ids of each text, nothing cut or padded.

    Args:
        tokenizer: fast or slow.
        texts: as what a model reads; or
        text_target: as what it writes, where a tokenizer tells the two apart.
        add_special_tokens: whether the tokenizer writes its own around each.

    Raises:
        ModelError: CP312 where the tokenizer's own code gives up.
    """
    given = {"text": texts} if text_target is None else {"text_target": text_target}
    ((name, some),) = given.items()
    if not some:
        return []
    try:
        with panics_caught():
            encoded = tokenizer(
                **{name: list(some)},
                add_special_tokens=add_special_tokens,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
    except Panic as error:
        raise ModelError(
            "CP312",
            f"the tokenizer gives up on one of {len(some):,} texts: {error}. Its files came with "
            "the model: look at its regular expressions, or use another tokenizer.",
        ) from error
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a prompt on its own, with exactly one BOS where the tokenizer has one.

    Args:
        text: the prompt, as ``chat.render_prompt`` gives it.
        tokenizer: fast or slow.
    """
    ids, bos = encode([text], tokenizer)[0], tokenizer.bos_token_id
    return ids if bos is None else [bos, *_without_bos(ids, bos)]


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


def _assemble(ids: RowIds, bos: int | None, ending: _Ending) -> Tokens:
    head, *rest = ids
    start: list[int] = []
    if bos is not None:
        start, head = [bos], _without_bos(head, bos)
        rest = rest if head else [_without_bos(each, bos) for each in rest]
    prompt, chosen, rejected = rest
    end = _common(prompt, chosen, rejected)
    return Tokens(
        prompt=start + head + prompt[:end],
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
