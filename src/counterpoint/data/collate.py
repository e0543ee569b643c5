"""Token pairs to a ``PairBatch``: the padded layout, two rows a pair.

Chosen rows first, then rejected rows, each with its own copy of the prompt, padded at the end.
Which tokens carry loss follows from lengths alone, so that a pad token that is also EOS hides
nothing.

Not here: which pairs make a batch (``sampler``), what the model does with it (``forward``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from counterpoint.errors import ModelError
from counterpoint.records import PairBatch, TokenPair


def collate_padded(
    pairs: Sequence[TokenPair], *, pad_id: int, vocab_size: int | None = None
) -> PairBatch:
    """Lay pairs into padded rows.

    Args:
        pairs: at least one.
        pad_id: any id the embedding has; it is masked and never a target.
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
        if vocab_size is not None and ids.max() >= vocab_size:
            raise ModelError(
                "CP303",
                f"row {row} has token id {ids.max()}, but the model's embedding has "
                f"{vocab_size} rows. Use the model's own tokenizer, or call "
                "model.resize_token_embeddings(len(tokenizer)).",
            )
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
