"""Token pairs to a ``PairBatch``, in one of two layouts.

Padded: two rows a pair, chosen rows first, then rejected rows, each with its own copy of the
prompt, padded at the end. Shared: all pairs in one row, ``prompt | chosen | rejected`` one after
the other, no padding, each prompt once. Which tokens carry loss follows from lengths alone, so
that a pad token that is also EOS hides nothing.

Not here: which pairs make a batch (``sampler``), what the model does with it (``forward``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from counterpoint.errors import ModelError
from counterpoint.records import PairBatch, PairSegments, TokenPair


def collate_padded(
    pairs: Sequence[TokenPair], *, pad_id: int, vocab_size: int | None = None
) -> PairBatch:
    """Lay pairs into padded rows.

    Args:
        pairs: at least one.
        pad_id: any id the embedding has; nothing looks at it, and it is never a target.
        vocab_size: rows of the model's embedding; None leaves ids unchecked.

    Returns:
        A batch on the CPU with ``2 * len(pairs)`` rows.

    Raises:
        ModelError: CP303 for a token id that the embedding does not have.
    """
    sequences = [(p.prompt, p.chosen, p.row) for p in pairs]
    sequences += [(p.prompt, p.rejected, p.row) for p in pairs]
    width = max(len(prompt) + len(completion) for prompt, completion, _ in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    sources, targets = [], []
    for index, (prompt, completion, row) in enumerate(sequences):
        ids = np.concatenate([np.asarray(prompt, np.int64), np.asarray(completion, np.int64)])
        _check_ids(ids, row, vocab_size)
        input_ids[index, : len(ids)] = ids
        mask[index, : len(ids)] = True
        # the very first token of a row has nothing before it that could predict it
        first = max(len(prompt), 1)
        sources.append(np.arange(first - 1, len(ids) - 1) + index * width)
        targets.append(ids[first:])
    return PairBatch(
        layout="padded",
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=None,
        target_source=torch.from_numpy(np.concatenate(sources)),
        target_ids=torch.from_numpy(np.concatenate(targets)),
        target_counts=torch.tensor([len(t) for t in targets]),
        weight=torch.tensor([p.weight for p in pairs], dtype=torch.float64),
        margin=torch.tensor([p.margin for p in pairs], dtype=torch.float64),
        row_ids=torch.tensor([p.row for p in pairs]),
    )


def collate_shared(pairs: Sequence[TokenPair], *, vocab_size: int | None = None) -> PairBatch:
    """Lay pairs into one row, each prompt once.

    Args:
        pairs: at least one.
        vocab_size: rows of the model's embedding; None leaves ids unchecked.

    Returns:
        A batch on the CPU with one row; positions of a rejected completion go on from its prompt.

    Raises:
        ModelError: CP303 for a token id that the embedding does not have.
    """
    ids, positions, segments = [], [], []
    chosen_sources, rejected_sources, chosen_targets, rejected_targets = [], [], [], []
    start = 0
    for pair in pairs:
        prompt, chosen, rejected = (
            np.asarray(part, np.int64) for part in (pair.prompt, pair.chosen, pair.rejected)
        )
        _check_ids(np.concatenate([prompt, chosen, rejected]), pair.row, vocab_size)
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
        chosen_sources.append(np.array([*last, *range(start + before, split - 1)]))
        rejected_sources.append(np.array([*last, *range(split, split + len(rejected) - 1)]))
        chosen_targets.append(chosen[skip:])
        rejected_targets.append(rejected[skip:])
        start = split + len(rejected)
    targets = chosen_targets + rejected_targets
    row = torch.from_numpy(np.concatenate(ids))[None]
    return PairBatch(
        layout="shared",
        input_ids=row,
        attention_mask=torch.ones_like(row, dtype=torch.bool),
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        target_source=torch.from_numpy(np.concatenate(chosen_sources + rejected_sources)).long(),
        target_ids=torch.from_numpy(np.concatenate(targets)),
        target_counts=torch.tensor([len(t) for t in targets]),
        weight=torch.tensor([p.weight for p in pairs], dtype=torch.float64),
        margin=torch.tensor([p.margin for p in pairs], dtype=torch.float64),
        row_ids=torch.tensor([p.row for p in pairs]),
        segments=tuple(segments),
    )


def pairs_of(batch: PairBatch) -> list[TokenPair]:
    """The pairs of a batch, in its order: ``collate_*`` of them is the batch again.

    Args:
        batch: in either layout, on any device.
    """
    rows, weight, margin = (x.tolist() for x in (batch.row_ids, batch.weight, batch.margin))
    parts = _shared_parts(batch) if batch.layout == "shared" else _padded_parts(batch)
    return [
        TokenPair(*ids, row=rows[pair], weight=weight[pair], margin=margin[pair])
        for pair, ids in enumerate(parts)
    ]


Parts = tuple[list[int], list[int], list[int]]
"""Ids of a prompt and its two completions."""


def _shared_parts(batch: PairBatch) -> list[Parts]:
    ids = batch.input_ids.tolist()
    found = []
    for row, start, *lengths in batch.segments:
        ends = np.cumsum([start, *lengths]).tolist()
        prompt, chosen, rejected = (ids[row][a:b] for a, b in pairwise(ends))
        found.append((prompt, chosen, rejected))
    return found


def _padded_parts(batch: PairBatch) -> list[Parts]:
    width = batch.input_ids.shape[1]
    texts = [
        row[mask].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    sources, counts = batch.target_source.tolist(), batch.target_counts.tolist()
    starts = np.cumsum([0, *counts]).tolist()
    found = []
    for pair in range(len(batch)):
        chosen, rejected = texts[pair], texts[pair + len(batch)]
        before = sources[starts[pair]] - pair * width + 1
        # an empty prompt and one of a single token look the same, unless the tokens differ
        if chosen[:before] != rejected[:before]:
            before = 0
        found.append((chosen[:before], chosen[before:], rejected[before:]))
    return found


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
        "model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)).",
    )


def _check_ids(ids: npt.NDArray[np.int64], row: int, vocab_size: int | None) -> None:
    if vocab_size is not None and ids.max() >= vocab_size:
        raise beyond_embedding(int(ids.max()), vocab_size, row)
