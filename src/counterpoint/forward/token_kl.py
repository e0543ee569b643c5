"""How far a policy is from the initial one at each target: KL(p0 || p) of the next token.

    KL = sum over the vocabulary of p0 d + p - p0,  d = log p0 - log p

With both sums of probabilities at 1 this is the usual sum of p0 d, but no term is below 0, equal
logits give exactly 0, and what rounding does to a log-sum-exp counts only by its square. The
gradient by the logits of p is p - p0.

It is an average over prefixes of the data, not over what the policy would write: it bounds no
divergence between distributions of whole completions.

Logits exist in chunks of rows, the policy's beside the initial policy's; a backward computes them
again. Under an affine head that is frozen the forward keeps a direction a row in their place.

Not here: where the hidden states come from (``pair_forward``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterpoint.forward.affine_logps import How
from counterpoint.records import exact_dtype

LOGITS_PER_CHUNK = {"cpu": 2**22}
"""Logits of a chunk by kind of device, of each policy: 16 MiB in float32."""

LOGITS_ELSEWHERE = 2**24
"""The same on accelerators: 64 MiB in float32."""

ToLogits = Callable[[Tensor], Tensor]
"""Some rows of a head's input -> their finished logits, in float32 or wider."""


@dataclass(frozen=True, slots=True)
class Affine:
    """An affine head and its input.

    Args:
        hidden: a row for each target.
        weight: of the head.
        bias: of the head, if it has one.
    """

    hidden: Float[Tensor, "targets width"]
    weight: Float[Tensor, "vocab width"]
    bias: Float[Tensor, " vocab"] | None


def affine_token_kl(
    policy: Affine,
    initial: Affine,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, " targets"]:
    """The divergence at each target under heads logits = softcap(scale * (h @ weight.T + bias)).

    Args:
        policy: differentiable in each of its tensors that requires it.
        initial: a constant.
        scale: factor of the logits of both.
        softcap: bound of the logits of both, above 0; None for none.
        dtype: dtype of the matrix products; None for that of the hidden states.

    Returns:
        In nats, at least 0 but for rounding; float64 where the device has it.
    """
    how = How(scale, softcap, dtype or policy.hidden.dtype)
    head = [each for each in (policy.weight, policy.bias) if each is not None]
    trains = any(each.requires_grad for each in head)
    wanted = torch.is_grad_enabled() and (trains or policy.hidden.requires_grad)
    if not wanted:
        return torch.cat(
            [_divergence(*chunk.logits())[0] for chunk in _chunks(policy, initial, how)]
        )
    function = _AffineKL if trains else _FrozenAffineKL
    found: Tensor = function.apply(  # type: ignore[no-untyped-call]
        policy.hidden, policy.weight, policy.bias, initial.hidden, initial.weight, initial.bias, how
    )
    return found


def logits_token_kl(
    hidden: Float[Tensor, "targets width"],
    to_logits: ToLogits,
    initial_hidden: Float[Tensor, "targets width"],
    to_initial_logits: ToLogits,
) -> Float[Tensor, " targets"]:
    """The divergence at each target under heads that are any function.

    Args:
        hidden: of the policy, a row for each target.
        to_logits: its head; called again in the backward.
        initial_hidden: of the initial policy.
        to_initial_logits: its head; called without gradient, and again in the backward.

    Returns:
        As ``affine_token_kl``.
    """

    def one_chunk(rows: Tensor, initial_rows: Tensor) -> Tensor:
        with torch.no_grad():
            initial = to_initial_logits(initial_rows)
        found: Tensor = _LogitsKL.apply(to_logits(rows), initial)  # type: ignore[no-untyped-call]
        return found

    with torch.no_grad():  # the first row tells the vocabulary
        vocab = to_logits(hidden[:1]).shape[-1]
    parts = [
        checkpoint(one_chunk, hidden[rows], initial_hidden[rows], use_reentrant=False)
        for rows in _rows(hidden, vocab)
    ]
    return torch.cat(parts)


def _rows(hidden: Tensor, vocab: int) -> Iterator[slice]:
    """Which rows make a chunk."""
    most = max(1, LOGITS_PER_CHUNK.get(hidden.device.type, LOGITS_ELSEWHERE) // vocab)
    for start in range(0, hidden.shape[0], most):
        yield slice(start, start + most)


def _divergence(logits: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """KL of each row, and its gradient by the policy's logits."""
    now, then = logits.log_softmax(-1), initial.log_softmax(-1)
    p0 = then.exp()
    by_logits = now.exp() - p0
    # what the initial policy never says counts nothing, though both logs be -inf
    gap = then.sub_(now).masked_fill_(p0 == 0, 0)
    terms = gap.mul_(p0).add_(by_logits)
    return terms.sum(-1, dtype=exact_dtype(terms.device)), by_logits


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some rows under an affine head, of both policies, in the products' dtype."""

    rows: slice
    policy: Affine
    initial: Affine
    how: How

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of the policy and of the initial one."""
        policy, initial = (
            self.how.finish(F.linear(one.hidden, one.weight, one.bias))
            for one in (self.policy, self.initial)
        )
        return policy, initial

    def compared(self) -> tuple[Tensor, Tensor]:
        """KL of each row, and its gradient by the policy's product."""
        logits, initial = self.logits()
        kl, by_logits = _divergence(logits, initial)
        slope = self.how.slope(logits)
        return kl, by_logits if slope is None else by_logits.mul_(slope)


def _chunks(policy: Affine, initial: Affine, how: How) -> Iterator[_Chunk]:
    @cache  # a frozen head, the same in both, is narrowed once
    def narrowed(tensor: Tensor) -> Tensor:
        return tensor.to(how.dtype)

    policy, initial = (
        Affine(
            narrowed(one.hidden),
            narrowed(one.weight),
            None if one.bias is None else narrowed(one.bias),
        )
        for one in (policy, initial)
    )
    for rows in _rows(policy.hidden, policy.weight.shape[0]):
        now, then = (Affine(one.hidden[rows], one.weight, one.bias) for one in (policy, initial))
        yield _Chunk(rows, now, then, how)


class _AffineKL(torch.autograd.Function):
    """Of a head that trains."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """Keep what was given: hidden states and heads of both."""
        *tensors, how = given
        ctx.save_for_backward(*tensors)
        ctx.how = how
        policy, initial = Affine(*tensors[:3]), Affine(*tensors[3:])
        return torch.cat([_divergence(*each.logits())[0] for each in _chunks(policy, initial, how)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute each chunk's logits again and multiply back through the policy's head."""
        how: How = ctx.how
        policy, initial = Affine(*ctx.saved_tensors[:3]), Affine(*ctx.saved_tensors[3:])
        # sums over chunks are wide: a bfloat16 sum would lose the late ones
        by_hidden, by_weight, by_bias = (
            torch.zeros_like(tensor, dtype=how.wide) if needed else None
            for tensor, needed in zip(ctx.saved_tensors[:3], ctx.needs_input_grad[:3], strict=True)
        )
        for chunk in _chunks(policy, initial, how):
            by_product = chunk.compared()[1].mul_(grads[0][chunk.rows, None])
            if by_bias is not None:
                by_bias += by_product.sum(0)
            by_product = by_product.to(how.dtype)
            if by_hidden is not None:
                by_hidden[chunk.rows] = (by_product @ chunk.policy.weight).to(how.wide)
            if by_weight is not None:
                by_weight += (by_product.T @ chunk.policy.hidden).to(how.wide)
        found = (
            sums if sums is None else sums.to(tensor.dtype)
            for sums, tensor in zip(
                (by_hidden, by_weight, by_bias), ctx.saved_tensors[:3], strict=True
            )
        )
        return *found, None, None, None, None


class _FrozenAffineKL(torch.autograd.Function):
    """Of a head that does not train: its direction is all that the backward needs."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        """Keep the gradient of each divergence by its hidden state."""
        *tensors, how = given
        policy, initial = Affine(*tensors[:3]), Affine(*tensors[3:])
        values, directions = [], []
        for chunk in _chunks(policy, initial, how):
            kl, by_product = chunk.compared()
            values.append(kl)
            directions.append(by_product.to(how.dtype) @ chunk.policy.weight)
        ctx.save_for_backward(torch.cat(directions))
        ctx.dtype = policy.hidden.dtype
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Go that way, as far as the gradient says."""
        (direction,) = ctx.saved_tensors
        wide = torch.promote_types(direction.dtype, torch.float32)
        by_hidden = grads[0].to(wide)[:, None] * direction
        return by_hidden.to(ctx.dtype), None, None, None, None, None, None


class _LogitsKL(torch.autograd.Function):
    """Of logits that are there."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, initial: Tensor) -> Tensor:
        """Keep the gradient by the logits."""
        kl, by_logits = _divergence(logits, initial)
        ctx.save_for_backward(by_logits)
        return kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale it."""
        (by_logits,) = ctx.saved_tensors
        return by_logits * grads[0][:, None].to(by_logits.dtype), None
