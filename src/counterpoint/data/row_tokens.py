"""What is trained of one row, token by token: its role, its text, whether it carries loss.

1. A token carries loss if it belongs to a turn that is trained, was not cut, and has a token before
   it that predicts it: what a layout makes a target.
2. The text of a token is what it adds to the text before it. A token that ends inside a
   character adds the rest of it with the token that ends it.
3. Tokens that stand for a picture are known by their span, with what the processor writes around.

Not here: drawing (``token_view``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.data.encode import encode_rows
from counterpoint.data.encoder import Encoder
from counterpoint.data.options import UNLIMITED, Limits
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.said_lists import place_in_list
from counterpoint.data.survival import from_column
from counterpoint.data.truncate import Span
from counterpoint.data.vocabularies import reader_of_sources
from counterpoint.errors import DataError
from counterpoint.forward.rows import carries_loss
from counterpoint.picture import Picture
from counterpoint.records import TokenPair

CONTEXT = 4
"""Tokens before that decoding a token is given: a space at a word's start depends on one."""

LONGEST_CHARACTER = 4
"""Tokens that a character can be spread over: its bytes in UTF-8."""

INCOMPLETE = "\ufffd"
"""What decoding writes for bytes that make no character."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token.

    Args:
        id: its number in the vocabulary.
        token: the vocabulary's own spelling of it.
        text: what it adds to the text before; empty where it ends inside a character.
        special: whether it stands for no text, such as BOS, EOS and a template's marks.
        loss: whether the loss has a term for it.
        cut: whether it was cut off to fit the limits; the model never sees it.
    """

    id: int
    token: str
    text: str
    special: bool
    loss: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A picture of a row, and the tokens of the prompt that stand for it.

    Args:
        start: place of the first of them in the prompt, from 0.
        tokens: how many they are, what the processor writes around included.
        width: of the picture in pixels, as it is seen.
        height: likewise.
        file: name of its file, without the folder; "" where the row holds its bytes.
        field: where it stands in the row, such as "images[0]".
        digest: SHA-256 of its encoded bytes, in hexadecimal.
    """

    start: int
    tokens: int
    width: int
    height: int
    file: str
    field: str
    digest: str


@dataclass(frozen=True, slots=True)
class RowTokens:
    """The tokens of one row, in the order of its text, cut ones included.

    Args:
        row: the row's number in its data set, from 0.
        prompt: the tokens before the boundary.
        chosen: the tokens of the preferred completion.
        rejected: the tokens of the other completion.
        boundary: tokens of the prompt's own encoding that the boundary left to the completions.
        same: whether cutting made the completions equal, so that the row teaches nothing.
        weight: factor of the pair in the loss.
        margin: extra margin, in nats of scaled reward.
        lost: what the chat template drops, changes or repeats of the row, in words.
        pictures: of the prompt, in the order of their places.
        listed: where its rejected completion stands in the set as it is given, in words; "" where
            the row there has one.
        gold: the tokens of the completion that is made likelier by itself, where the loss reads
            one beside the chosen.
    """

    row: int
    prompt: tuple[Piece, ...]
    chosen: tuple[Piece, ...]
    rejected: tuple[Piece, ...]
    boundary: int = 0
    same: bool = False
    weight: float = 1.0
    margin: float = 0.0
    lost: tuple[str, ...] = ()
    pictures: tuple[ShownPicture, ...] = ()
    listed: str = ""
    gold: tuple[Piece, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        found = asdict(self)
        return found if self.gold else {k: v for k, v in found.items() if k != "gold"}


def tokens_of_row(
    raw: Mapping[str, Any],
    row: int,
    encoder: Encoder[Any],
    limits: Limits,
    *,
    folder: str | None = None,
) -> RowTokens:
    """Encode a raw row as training does, and keep what was cut in sight.

    Args:
        raw: the row's cells by column.
        row: its number in the data set.
        encoder: as given to ``encode_rows``.
        limits: the run's.
        folder: in which the set's pictures lie, where the run names none.

    Raises:
        DataError: the code of what makes the row unusable.
    """
    record = _encoded(raw, row, encoder, limits, folder)
    if record["problem"]:
        raise DataError(record["problem"][:5], record["problem"][6:])
    unlimited = replace(UNLIMITED, train_turns=limits.train_turns, gold=limits.gold)
    whole = to_pair(_encoded(raw, row, encoder, unlimited, folder), encoder.start_tokens)
    place = place_in_list(raw)
    found = tokens_of_pair(
        to_pair(record, encoder.start_tokens),
        encoder.tokenizer,
        whole=whole,
        boundary=record["boundary"],
        same=record["same"],
        lost=tuple(f"{e.in_words}: {e.shown!r}" for e in from_column(record["lost"])),
        pictures=tuple(
            _shown(*one) for one in zip(whole.pictures, encoder.spans(whole), strict=True)
        ),
    )
    return found if place is None else replace(found, listed=place.in_words())


def tokens_of_pair(
    pair: TokenPair,
    tokenizer: PreTrainedTokenizerBase,
    *,
    whole: TokenPair | None = None,
    boundary: int = 0,
    same: bool = False,
    lost: tuple[str, ...] = (),
    pictures: tuple[ShownPicture, ...] = (),
) -> RowTokens:
    """Name the tokens of a pair.

    Args:
        pair: as it is trained.
        tokenizer: the one that made it.
        whole: the pair before anything was cut; None: nothing was.
        boundary: as in ``RowTokens``.
        same: as in ``RowTokens``.
        lost: as in ``RowTokens``.
        pictures: as in ``RowTokens``.
    """
    whole = whole or pair
    named, read = _Namer(tokenizer), _Namer(reader_of_sources(tokenizer))
    before = whole.start or whole.prompt
    fewer = len(whole.prompt) - len(pair.prompt)
    # tokens were cut from one place: up to there the two are alike
    both = zip(pair.prompt, whole.prompt, strict=False)
    first = sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))
    cut = range(first, first + fewer)
    prompt = [
        Piece(*read[number], text, read.special(number), loss=False, cut=place in cut)
        for place, (number, text) in enumerate(read.texts(whole.prompt, ()))
    ]
    prompt += [
        Piece(*named[number], text, named.special(number), loss=False, cut=False)
        for number, text in named.texts(whole.start, ())
    ]

    def completion(ids: Sequence[int], kept: int, given: Sequence[int]) -> tuple[Piece, ...]:
        # nothing predicts the first token of a sequence
        start = 0 if pair.prompt else 1
        of_turns = carries_loss(len(ids), given)
        return tuple(
            Piece(
                *named[number],
                text,
                named.special(number),
                loss=start <= place < kept and bool(of_turns[place]),
                cut=place >= kept,
            )
            for place, (number, text) in enumerate(named.texts(ids, before))
        )

    return RowTokens(
        row=pair.row,
        prompt=tuple(prompt),
        chosen=completion(whole.chosen, len(pair.chosen), pair.chosen_given),
        rejected=completion(whole.rejected, len(pair.rejected), pair.rejected_given),
        gold=completion(whole.gold, len(pair.gold), pair.gold_given) if pair.gold else (),
        boundary=boundary,
        same=same,
        weight=pair.weight,
        margin=pair.margin,
        lost=lost,
        pictures=pictures,
    )


def _shown(picture: Picture, span: Span) -> ShownPicture:
    start, end = span
    file = Path(picture.source).name if isinstance(picture.source, str) else ""
    size = picture.width, picture.height
    return ShownPicture(start, end - start, *size, file, picture.field, picture.digest)


def texts_of(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()
) -> list[str]:
    """What each token adds to the text; joined, they are the text of all.

    Args:
        ids: the tokens.
        tokenizer: decodes them, special tokens included, spaces as they are.
        before: tokens that precede them.
    """
    texts: list[str] = []
    context, pending, known = list(before[-CONTEXT:]), [], ""
    unfinished = 0
    """Tokens that a character may have been begun and not ended in."""
    for place, number in enumerate(ids):
        pending.append(number)
        text = _added(pending, context, tokenizer)
        stable = text if place == len(ids) - 1 else text.rstrip(INCOMPLETE)
        texts.append(stable[len(known) :])
        # a token that ends a character may begin another
        unfinished = 1 if len(stable) > len(known) else unfinished + 1
        known = stable
        if unfinished == LONGEST_CHARACTER and known:
            texts[-1], stable = text[len(known) :], text  # bytes that make no character
        if stable == text:
            context, pending, known = [*context, *pending][-CONTEXT:], [], ""
            unfinished = 0
        elif unfinished == LONGEST_CHARACTER:
            # a character is no longer: the first token ends none, the last may begin one
            first = _added(pending[:1], context, tokenizer)
            texts[place + 1 - LONGEST_CHARACTER] = first
            known = known.removeprefix(first) if known.startswith(first) else ""
            context, pending = [*context, pending[0]][-CONTEXT:], pending[1:]
            unfinished -= 1
    return texts


def _added(
    pending: Sequence[int], context: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> str:
    before, both = (_decoded(ids, tokenizer) for ids in (context, [*context, *pending]))
    # a context that ends inside a character reads otherwise with what follows
    return both[len(before) :] if both.startswith(before) else _decoded(pending, tokenizer)


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text: Any = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


class _Namer:
    """The vocabulary's spelling of ids, and which of them are special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        marked = {token.content for token in added if token.special}
        # by name: one token may have two ids, where sources and targets have vocabularies apart
        self._special = marked | set(tokenizer.all_special_tokens)

    def special(self, number: int) -> bool:
        return self[number][1] in self._special

    def __getitem__(self, number: int) -> tuple[int, str]:
        return number, str(self._tokenizer.convert_ids_to_tokens(number))

    def texts(self, ids: Sequence[int], before: Sequence[int]) -> Iterator[tuple[int, str]]:
        return zip(ids, texts_of(ids, self._tokenizer, before), strict=True)


def _encoded(
    raw: Mapping[str, Any], row: int, encoder: Encoder[Any], limits: Limits, folder: str | None
) -> dict[str, Any]:
    batch = {name: [value] for name, value in raw.items()}
    columns = encode_rows(batch, [row], encoder=encoder, limits=limits, folder=folder, whole=True)
    return {name: values[0] for name, values in columns.items()}
