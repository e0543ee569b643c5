"""Token pairs as rows of ids, and where in them each target is predicted.

Padded: two rows a pair, chosen rows first, then rejected rows, each with its own copy of the
prompt, padded at the end. Shared: all pairs in one row, ``prompt | chosen | rejected`` one after
the other, no padding, each prompt once. Which tokens carry loss follows from lengths and from the
spans that are given, never from ids, so that a pad token that is also EOS hides nothing.

Not here: which pairs make a batch (``data.sampler``), what a model is given of it (``layouts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from counterpoint.errors import ModelError
from counterpoint.records import PairSegments, TokenPair

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
        sources: of each sequence (chosen completions, then rejected ones) the flat places in
            ``ids`` of the tokens that predict its targets.
        targets: the targets themselves.
        inputs: what else the model is called with, by keyword: positions where they are not
            0, 1, 2, ... in each row.
        segments: where each pair lies in a row that holds several.
    """

    ids: Ids
    mask: npt.NDArray[np.bool_]
    sources: list[Ids]
    targets: list[Ids]
    inputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    segments: tuple[PairSegments, ...] = ()


def longest_row(pair: TokenPair) -> int:
    """Tokens of a pair's prompt with its longer completion."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


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
    """Two rows a pair, as wide as the longest.

    Args:
        pairs: at least one.
        pad_id: any id the embedding has; nothing looks at it, and it is never a target.
    """
    sequences = [(pair.prompt, pair.chosen, pair.chosen_given) for pair in pairs]
    sequences += [(pair.prompt, pair.rejected, pair.rejected_given) for pair in pairs]
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
    """All pairs in one row; positions of a rejected completion go on from its prompt.

    Args:
        pairs: at least one.
    """
    ids, positions, segments = [], [], []
    chosen_sources, rejected_sources, chosen_targets, rejected_targets = [], [], [], []
    start = 0
    for pair in pairs:
        prompt, chosen, rejected = (
            np.asarray(part, np.int64) for part in (pair.prompt, pair.chosen, pair.rejected)
        )
        before, split = len(prompt), start + len(prompt) + len(chosen)
        ids += [prompt, chosen, rejected]
        positions += [
            np.arange(before + len(chosen)),
            np.arange(before, before + len(rejected)),
        ]
        segments.append(PairSegments(0, start, before, len(chosen), len(rejected)))
        # both completions start from the last prompt token, which is there once
        last = [start + before - 1] if before else []
        skip = 0 if before else 1
        good = carries_loss(len(chosen), pair.chosen_given)[skip:]
        bad = carries_loss(len(rejected), pair.rejected_given)[skip:]
        chosen_sources.append(np.array([*last, *range(start + before, split - 1)], np.int64)[good])
        rejected_sources.append(
            np.array([*last, *range(split, split + len(rejected) - 1)], np.int64)[bad]
        )
        chosen_targets.append(chosen[skip:][good])
        rejected_targets.append(rejected[skip:][bad])
        start = split + len(rejected)
    row = np.concatenate(ids)[None]
    return Rows(
        ids=row,
        mask=np.ones_like(row, dtype=bool),
        sources=chosen_sources + rejected_sources,
        targets=chosen_targets + rejected_targets,
        inputs={"position_ids": np.concatenate(positions)[None]},
        segments=tuple(segments),
    )


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
        said = max(max(ids, default=0) for ids in (pair.start, pair.chosen, pair.rejected))
        for highest, rows in zip((max(pair.prompt, default=0), said), vocab_size, strict=True):
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
