"""Token pairs as rows of ids, and where in them each target is predicted.

Padded: a row for each completion, chosen rows first, then rejected rows, then gold ones if there
are any, each with its own copy of the prompt, padded at the end. Shared: all pairs in one row,
``prompt | chosen | rejected | gold`` one after the other, no padding, each prompt once; what pairs
of one prompt have in common is there once (``one_prompt``). Which tokens carry loss follows from
lengths and from the spans that are given, never from ids, so that a pad token that is also EOS
hides nothing.

Not here: which pairs make a batch (``data.sampler``), what a model is given of it (``layouts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoint.errors import ModelError
from counterpoint.forward.one_prompt import by_prompt
from counterpoint.pair_segments import PairSegments
from counterpoint.records import TokenPair

Ids = npt.NDArray[np.int64]


class EmbeddingRows(NamedTuple):
    """Token ids that a model knows: the same of what it reads and writes, but for some Marians.

    Args:
        read: rows of the embedding of prompts.
        written: of the embedding of completions, and of what a decoder begins with.
    """

    read: int
    written: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a layout makes of pairs.

    Args:
        ids: token ids, ``[rows, tokens]``.
        mask: True where a token is real, likewise.
        sources: of each sequence, in the order of ``PairBatch``, the flat places in ``ids`` of the
            tokens that predict its targets.
        targets: the targets themselves.
        inputs: what else the model is called with, by keyword: positions where they are not
            0, 1, 2, ... in each row.
        segments: where the pairs of each prompt lie in a row that holds several.
    """

    ids: Ids
    mask: npt.NDArray[np.bool_]
    sources: list[Ids]
    targets: list[Ids]
    inputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    segments: tuple[PairSegments, ...] = ()


def longest_row(pair: TokenPair) -> int:
    """Tokens of a pair's prompt with its longest completion."""
    return len(pair.prompt) + max(map(len, pair.completions))


def said(pairs: Sequence[TokenPair]) -> list[tuple[TokenPair, int]]:
    """The sequences of a batch in their order: a pair, and which of its completions.

    Args:
        pairs: at least one; all have as many completions.
    """
    return [(pair, side) for side in range(len(pairs[0].completions)) for pair in pairs]


def carries_loss(tokens: int, given: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which tokens of a completion carry loss, ``[tokens]``.

    Args:
        tokens: of the completion.
        given: spans that do not, as in ``TokenPair``.
    """
    mask = np.ones(tokens, dtype=bool)
    for start, end in zip(given[::2], given[1::2], strict=True):
        mask[start:end] = False
    return mask


def padded_rows(pairs: Sequence[TokenPair], pad_id: int) -> Rows:
    """A row for each completion, as wide as the longest.

    Args:
        pairs: at least one.
        pad_id: any id the embedding has; nothing looks at it, and it is never a target.
    """
    sequences = [(p.prompt, p.completions[side], p.givens[side]) for p, side in said(pairs)]
    width = max(len(prompt) + len(completion) for prompt, completion, _ in sequences)
    rows = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    sources, targets = [], []
    for index, (prompt, completion, given) in enumerate(sequences):
        ids = np.concatenate([np.asarray(prompt, np.int64), np.asarray(completion, np.int64)])
        rows[index, : len(ids)] = ids
        mask[index, : len(ids)] = True
        # the very first token of a row has nothing before it that could predict it
        first = max(len(prompt), 1)
        kept = carries_loss(len(completion), given)[first - len(prompt) :]
        sources.append(np.arange(first - 1, len(ids) - 1)[kept] + index * width)
        targets.append(ids[first:][kept])
    return Rows(rows, mask, sources, targets)


def shared_row(pairs: Sequence[TokenPair]) -> Rows:
    """All pairs in one row; positions of each completion go on from its prompt.

    Args:
        pairs: at least one; what those of one prompt have in common is there once.
    """
    ids, positions, segments = [], [], []
    sides = range(len(pairs[0].completions))
    sources: list[list[Ids]] = [[] for _ in sides]
    targets: list[list[Ids]] = [[] for _ in sides]
    start = 0
    for together in by_prompt(pairs):
        segment = together.segment(pairs, start)
        prompt, before = pairs[together.pairs[0]].prompt, segment.prompt
        laid = [pairs[number].completions[side] for number, side in together.first]
        ids += [np.asarray(one, np.int64) for one in (prompt, *laid)]
        positions += [np.arange(before), *(before + np.arange(n) for n in segment.completions)]
        segments.append(segment)
        # each completion starts from the last prompt token, which is there once
        last = [start + before - 1] if before else []
        skip = 0 if before else 1
        ends = start + before + np.cumsum(segment.completions)
        for number, its in zip(together.pairs, together.of, strict=True):
            for side, place in enumerate(its):
                kept = carries_loss(len(laid[place]), pairs[number].givens[side])[skip:]
                here = range(ends[place] - len(laid[place]), ends[place] - 1)
                sources[side].append(np.array([*last, *here], np.int64)[kept])
                targets[side].append(np.asarray(laid[place], np.int64)[skip:][kept])
        start += segment.tokens
    row = np.concatenate(ids)[None]
    return Rows(
        ids=row,
        mask=np.ones_like(row, dtype=bool),
        sources=[*chain.from_iterable(sources)],
        targets=[*chain.from_iterable(targets)],
        inputs={"position_ids": np.concatenate(positions)[None]},
        segments=tuple(segments),
    )


def asked_once(rows: Rows) -> dict[str, Tensor]:
    """``PairBatch.asked`` and ``answers``; nothing where each sequence has its own completion.

    Args:
        rows: of a batch.
    """
    laid = sum(len(one.completions) for one in rows.segments)
    if not laid or laid == len(rows.targets):
        return {}
    sources, targets = np.concatenate(rows.sources), np.concatenate(rows.targets)
    kinds = sources * (int(targets.max()) + 1) + targets
    _, asked, answers = np.unique(kinds, return_index=True, return_inverse=True)
    return {"asked": torch.from_numpy(asked), "answers": torch.from_numpy(answers)}


def check_ids(pairs: Sequence[TokenPair], vocab_size: EmbeddingRows | int) -> None:
    """Refuse token ids that the embedding does not have.

    Args:
        pairs: any.
        vocab_size: rows of the embedding, or of both.

    Raises:
        ModelError: CP303, with the first row that has one.
    """
    if isinstance(vocab_size, int):
        vocab_size = EmbeddingRows(vocab_size, vocab_size)
    for pair in pairs:
        written = max(max(ids, default=0) for ids in (pair.start, *pair.completions))
        for highest, rows in zip((max(pair.prompt, default=0), written), vocab_size, strict=True):
            if highest >= rows:
                raise beyond_embedding(int(highest), rows, pair.row)


def beyond_embedding(token_id: int, vocab_size: int, row: int | None = None) -> ModelError:
    """CP303, ready to raise.

    Args:
        token_id: the id that is too high.
        vocab_size: rows of the embedding.
        row: where it was met, if that is known.
    """
    where = "the data set has" if row is None else f"row {row} has"
    return ModelError(
        "CP303",
        f"{where} token id {token_id}, but the model's embedding has {vocab_size} rows. Use the "
        "model's own tokenizer, or give the new tokens rows: --resize_vocab, or in a script "
        "model.resize_token_embeddings(len(tokenizer)).",
    )
