"""Log-probability of given tokens from logits, or from a head that is any module, in chunks.

A chunk's logits live only while it is worked on: the backward computes them again.

Not here: the plain matrix that most heads are (``affine_logps``), where the head is (``head``),
which rows have a target (``PairBatch``), sums over a completion (``pair_forward``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterpoint.forward.affine_logps import finish_logits

LOGITS_PER_CHUNK = 2**25
"""Logits held at a time: 128 MiB in float32."""


def module_token_logps(
    hidden: Float[Tensor, "targets width"],
    head: Callable[[Tensor], Tensor],
    target_ids: Int[Tensor, " targets"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """Log-probabilities under a head that is any module: adapted or quantised, for example.

    Args:
        hidden: input of the head at each row with a target.
        head: called on chunks of ``hidden``; recomputed in the backward.
        target_ids: the token of each row.
        scale: factor of the logits.
        softcap: bound of the logits, above 0; None for none.

    Returns:
        The log-probability of each target in nats, differentiable, and the mean logit of each
        row, not differentiable; both in float32 or wider.
    """

    def one_chunk(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return dense_token_logps(finish_logits(head(rows), scale, softcap), ids)

    # the first row tells the vocabulary; a quantised head may not say it in its weight's shape
    with torch.no_grad():
        vocab = head(hidden[:1]).shape[-1]
    parts = [
        checkpoint(one_chunk, rows, ids, use_reentrant=False)
        for rows, ids in zip(_chunks(hidden, vocab), _chunks(target_ids, vocab), strict=True)
    ]
    logps, means = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(means)


def dense_token_logps(
    logits: Float[Tensor, "targets vocab"], target_ids: Int[Tensor, " targets"]
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """Log-probabilities from logits that are there already.

    Args:
        logits: of each row with a target, in any floating dtype.
        target_ids: the token of each row.

    Returns:
        As ``module_token_logps``.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = wide.gather(-1, target_ids[:, None]).squeeze(-1) - wide.logsumexp(-1)
    return logps, wide.detach().mean(-1)


def _chunks(tensor: Tensor, vocab: int) -> tuple[Tensor, ...]:
    return torch.split(tensor, max(1, LOGITS_PER_CHUNK // vocab))
