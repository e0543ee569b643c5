"""Log-probability of given tokens from hidden states and the head, in chunks of rows.

Logits of a chunk live only while the chunk is worked on: the forward keeps one log-sum-exp a
row, the backward computes the logits again and writes the gradients by hand. The matrix
products run in the dtype of the run; the log-sum-exp is float32 (float64 in float64 runs).

Not here: where the head is and what it does to its logits (``head``), which rows have a target
(``PairBatch``), sums over a completion (``pair_forward``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 2**25
"""Logits held at a time: 128 MiB in float32. Fewer chunks cost memory, more cost passes over
the head's gradient."""


def affine_token_logps(
    hidden: Float[Tensor, "targets width"],
    weight: Float[Tensor, "vocab width"],
    bias: Float[Tensor, " vocab"] | None,
    target_ids: Int[Tensor, " targets"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """Log-probabilities under logits = softcap(scale * (hidden @ weight.T + bias)).

    Args:
        hidden: input of the head at each row with a target.
        weight: the head's weight; may be tied to the embedding, may be frozen.
        bias: the head's bias, if it has one.
        target_ids: the token of each row.
        scale: factor of the logits (Cohere's logit_scale, the inverse of Granite's).
        softcap: bound c of c * tanh(logits / c) (Gemma 2), above 0; None for none.
        dtype: dtype of the matrix products; None for that of ``hidden``.

    Returns:
        The log-probability of each target in nats, differentiable, and the mean logit of each
        row, not differentiable; both in float32 or wider.
    """
    logps, means = _AffineTokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, target_ids, scale, softcap, dtype or hidden.dtype
    )
    return logps, means


def module_token_logps(
    hidden: Float[Tensor, "targets width"],
    head: nn.Module,
    target_ids: Int[Tensor, " targets"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """The same for a head that is any module: a LoRA-adapted or quantised one, for example.

    Args:
        hidden: input of the head at each row with a target.
        head: called on chunks of ``hidden``; recomputed in the backward.
        target_ids: the token of each row.
        scale: factor of the logits.
        softcap: bound of the logits, above 0; None for none.

    Returns:
        As ``affine_token_logps``.
    """

    def one_chunk(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return dense_token_logps(_finish(head(rows), scale, softcap), ids)

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
    """The same from logits that are there already.

    Args:
        logits: of each row with a target, in any floating dtype.
        target_ids: the token of each row.

    Returns:
        As ``affine_token_logps``.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = wide.gather(-1, target_ids[:, None]).squeeze(-1) - wide.logsumexp(-1)
    return logps, wide.detach().mean(-1)


class _AffineTokenLogps(torch.autograd.Function):
    """See ``affine_token_logps``.

    With p = softmax(y) the gradient of log p_t by the logits y is onehot(t) - p; the soft-cap
    y = c tanh(x / c) has the derivative 1 - (y / c)^2.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Chunk by chunk; keeps one log-sum-exp per row."""
        head = _AffineHead(weight, bias, scale, softcap, dtype)
        lse, picked, means = [], [], []
        for rows, ids in zip(
            _chunks(hidden, head.vocab), _chunks(target_ids, head.vocab), strict=True
        ):
            logits = head.logits(rows)
            lse.append(logits.logsumexp(-1))
            picked.append(logits.gather(-1, ids[:, None]).squeeze(-1))
            means.append(logits.mean(-1))
        all_lse, all_means = torch.cat(lse), torch.cat(means)
        ctx.save_for_backward(hidden, weight, bias, target_ids, all_lse)
        ctx.options = (scale, softcap, dtype)
        ctx.mark_non_differentiable(all_means)
        return torch.cat(picked) - all_lse, all_means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute each chunk's logits again and multiply back through the head."""
        hidden, weight, bias, target_ids, lse = ctx.saved_tensors
        head = _AffineHead(weight, bias, *ctx.options)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # sums over chunks stay wide: a bfloat16 sum would lose the late chunks
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_hidden: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if need_bias else None
        for rows, ids, row_lse, grad in zip(
            *(_chunks(x, head.vocab) for x in (hidden, target_ids, lse, grads[0])), strict=True
        ):
            by_product = head.gradient(rows, ids, row_lse, grad)
            if grad_bias is not None:
                grad_bias += by_product.sum(0)
            by_product = by_product.to(head.dtype)
            if need_hidden:
                grad_hidden.append((by_product @ head.weight).to(hidden.dtype))
            if grad_weight is not None:
                _add_product(grad_weight, by_product.T, rows.to(head.dtype))
        return (
            torch.cat(grad_hidden) if need_hidden else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


class _AffineHead:
    """The head's arithmetic in a given dtype, forward and backward, for one chunk of rows."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.scale, self.softcap, self.dtype = scale, softcap, dtype
        self.vocab = weight.shape[0]

    def logits(self, rows: Tensor) -> Tensor:
        """Logits of some rows, float32 or wider."""
        return _finish(
            F.linear(rows.to(self.dtype), self.weight, self.bias), self.scale, self.softcap
        )

    def gradient(self, rows: Tensor, ids: Tensor, lse: Tensor, grad: Tensor) -> Tensor:
        """Gradient by the product hidden @ weight.T of these rows."""
        logits = self.logits(rows)
        slope = None if self.softcap is None else 1 - (logits / self.softcap).square()
        by_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
        by_logits.scatter_add_(1, ids[:, None], grad[:, None].to(by_logits.dtype))
        if slope is not None:
            by_logits *= slope
        return by_logits.mul_(self.scale) if self.scale != 1.0 else by_logits


def _finish(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """From the head's product to the model's logits, widened first."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        wide = wide * scale
    if softcap is not None:
        wide = torch.tanh(wide / softcap) * softcap
    return wide


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total that may be wider than the product."""
    if total.dtype == left.dtype:
        # in place within the product: no second matrix of the total's size
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(tensor: Tensor, vocab: int) -> tuple[Tensor, ...]:
    return torch.split(tensor, max(1, LOGITS_PER_CHUNK // vocab))
