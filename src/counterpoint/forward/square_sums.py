"""The log of the sum of squared probabilities of the next token, for WPO (arXiv:2406.11827).

    log sum p^2 = logsumexp(2 y) - 2 logsumexp(y)

It is the log-probability that two draws of the next token agree, and about what a token that the
policy draws itself has as its log-probability. Nothing is differentiated. A second look at the
logits, chunk by chunk, is what it costs; a run that does not ask for it pays nothing.

Not here: where the hidden states come from (``pair_forward``), the weight of a pair
(``losses.objective``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.forward.affine_logps import finish_logits
from counterpoint.forward.kernels import Projection

LOGITS_PER_CHUNK = {"cpu": 2**22}
"""Logits of a chunk by kind of device: 16 MiB in float32."""

LOGITS_ELSEWHERE = 2**25
"""The same on accelerators: 128 MiB in float32."""


@torch.no_grad()
def log_square_sums(
    head: Projection, hidden: Float[Tensor, "targets width"]
) -> Float[Tensor, " targets"]:
    """The log of the sum over the vocabulary of p^2 at each row.

    Args:
        head: of the policy.
        hidden: its input at each row with a target; of a dense head, the logits.

    Returns:
        In nats, at most 0, in float32 or wider; without a gradient.
    """
    vocab = _logits(head, hidden[:1]).shape[-1]
    most = LOGITS_PER_CHUNK.get(hidden.device.type, LOGITS_ELSEWHERE)
    return torch.cat(
        [
            (2 * _logits(head, rows).log_softmax(-1)).logsumexp(-1)
            for rows in torch.split(hidden, max(1, most // vocab))
        ]
    )


def _logits(head: Projection, rows: Tensor) -> Tensor:
    if head.dense:
        return finish_logits(rows, 1.0, None)
    if head.weight is None:
        return finish_logits(head.module(rows), head.scale, head.softcap)
    bias = None if head.bias is None else head.bias.to(head.dtype)
    product = F.linear(rows.to(head.dtype), head.weight.to(head.dtype), bias)
    return finish_logits(product, head.scale, head.softcap)
