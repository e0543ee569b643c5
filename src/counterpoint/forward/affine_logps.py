"""Log-probability of given tokens under an affine head, tile by tile, gradients by hand.

The logits are computed in tiles of rows and columns of the vocabulary that are small enough to
stay in the cache of a CPU, and live only while their tile is worked on:

1. where the head trains, the forward keeps one log-sum-exp a row; the backward computes each tile
   again and writes each part of the head's gradient once;
2. where the head is frozen, the forward keeps the direction in which each hidden state should
   move, W[target] - p W, and the backward only scales it: half the work;
3. where nothing needs a gradient, nothing is kept.

Products run in the dtype of the run; logits, log-sum-exp and sums over tiles are float32 (float64
in float64 runs).

Not here: where the head is and what it does to its logits (``head``), heads that are no plain
matrix (``token_logps``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.records import exact_dtype

LOGITS_PER_TILE = {"cpu": 2**20}
"""Logits of a tile by kind of device: 4 MiB in float32, that a CPU's cache holds."""

LOGITS_ELSEWHERE = 2**25
"""The same on accelerators, where fewer and larger launches count: 128 MiB in float32."""

MOST_ROWS = 2048
"""Rows of a tile; more rows are worked on in blocks."""

LOG2_E = math.log2(math.e)


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
    how = How(scale, softcap, dtype or hidden.dtype)
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and (trains or hidden.requires_grad)):
        logps, _, means = _look(hidden, weight, bias, target_ids, how)
        return logps, means
    function = _TokenLogps if trains else _FrozenTokenLogps
    logps, means = function.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, target_ids, how
    )
    return logps, means


@dataclass(frozen=True, slots=True)
class How:
    """What becomes of hidden @ weight.T + bias, and in which dtype it is computed.

    Args:
        scale: factor of the logits.
        softcap: bound of the logits, above 0; None for none.
        dtype: of the matrix products.
    """

    scale: float
    softcap: float | None
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        """Dtype of logits and sums."""
        return torch.promote_types(self.dtype, torch.float32)

    def finish(self, product: Tensor) -> Tensor:
        """From the product to the logits, widened first."""
        return finish_logits(product, self.scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """Derivative of the logits by the product; None where it is 1.

        c tanh(x / c) has the derivative 1 - (logits / c)^2.
        """
        if self.softcap is None:
            return None if self.scale == 1.0 else self.scale
        return (1 - (logits / self.softcap).square_()).mul_(self.scale)


def finish_logits(product: Tensor, scale: float, softcap: float | None) -> Tensor:
    """From a head's product to the model's logits, widened first."""
    wide = product.to(torch.promote_types(product.dtype, torch.float32))
    if scale != 1.0:
        wide = wide * scale
    if softcap is not None:
        wide = torch.tanh(wide / softcap) * softcap
    return wide


@dataclass(frozen=True, slots=True)
class _Tile:
    """Logits of some rows and columns.

    Args:
        rows: which rows.
        hidden: their input, in the products' dtype.
        logits: wide; may be overwritten.
        target: column of each row's target within the tile, or some column where it is not.
        has_target: whether it is.
    """

    rows: slice
    hidden: Tensor
    logits: Tensor
    target: Tensor
    has_target: Tensor


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some columns of the vocabulary, their weights read once for all rows.

    Args:
        which: which columns.
        weight: theirs, in the products' dtype.
        bias: theirs, likewise.
        how: from product to logits.
    """

    which: slice
    weight: Tensor
    bias: Tensor | None
    how: How

    def tiles(self, hidden: Tensor, target_ids: Tensor) -> Iterator[_Tile]:
        """The logits of all rows in these columns, block after block."""
        last = self.weight.shape[0] - 1
        for start in range(0, hidden.shape[0], MOST_ROWS):
            rows = slice(start, start + MOST_ROWS)
            product = F.linear(hidden[rows], self.weight, self.bias)
            logits = self.how.finish(product)
            place = target_ids[rows] - self.which.start
            inside = (place >= 0) & (place <= last)
            yield _Tile(rows, hidden[rows], logits, place.clamp(0, last), inside)


def _columns(weight: Tensor, bias: Tensor | None, rows: int, how: How) -> Iterator[_Columns]:
    budget = LOGITS_PER_TILE.get(weight.device.type, LOGITS_ELSEWHERE)
    step = max(1, budget // max(1, min(rows, MOST_ROWS)))
    for start in range(0, weight.shape[0], step):
        which = slice(start, min(start + step, weight.shape[0]))
        part = None if bias is None else bias[which].to(how.dtype)
        yield _Columns(which, weight[which].to(how.dtype), part, how)


class _Softmax:
    """The softmax of every row so far, column after column, without its values.

    Args:
        hidden: the rows' input.
        how: from product to logits.
    """

    def __init__(self, hidden: Tensor, how: How) -> None:
        self.picked = hidden.new_zeros(hidden.shape[0], dtype=how.wide)
        # finite, so that columns masked with -inf leave no NaN
        self.peak = torch.full_like(self.picked, torch.finfo(how.wide).min)
        self.sums = torch.zeros_like(self.picked)
        # wider, so that rounding does not add up from tile to tile
        self.mass = torch.zeros_like(self.picked, dtype=exact_dtype(hidden.device))

    def add(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """Take a tile, overwriting its logits.

        Returns:
            The tile's probabilities times the mass so far, and the factor of all earlier ones.
        """
        at, logits = tile.rows, tile.logits
        own = logits.gather(1, tile.target[:, None])[:, 0]
        self.picked[at] = torch.where(tile.has_target, own, self.picked[at])
        self.sums[at] += logits.sum(-1)
        top = torch.maximum(self.peak[at], logits.amax(-1))
        shrink = (self.peak[at] - top).exp_()
        odds = _exp_(logits.sub_(top[:, None]))
        self.mass[at] = self.mass[at] * shrink + odds.sum(-1)
        self.peak[at] = top
        return odds, shrink

    def log_sum_exp(self) -> Tensor:
        """Of each row's logits."""
        return self.peak + self.mass.log().to(self.peak.dtype)


def _exp_(x: Tensor) -> Tensor:
    """The exponential in place; a CPU takes a quarter of the time for one to the base of 2."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return x.mul_(LOG2_E).exp2_()
    return x.exp_()


def _look(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target_ids: Tensor, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, log-sum-exp and mean logit of each row."""
    rows = hidden.to(how.dtype)
    softmax = _Softmax(rows, how)
    for columns in _columns(weight, bias, rows.shape[0], how):
        for tile in columns.tiles(rows, target_ids):
            softmax.add(tile)
    lse = softmax.log_sum_exp()
    return softmax.picked - lse, lse, softmax.sums / weight.shape[0]


class _TokenLogps(torch.autograd.Function):
    """Of a head that trains.

    With p = softmax(y) the gradient of log p_t by the logits y is onehot(t) - p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        how: How,
    ) -> tuple[Tensor, Tensor]:
        """Keep one log-sum-exp a row."""
        logps, lse, means = _look(hidden, weight, bias, target_ids, how)
        ctx.save_for_backward(hidden, weight, bias, target_ids, lse)
        ctx.how = how
        ctx.mark_non_differentiable(means)
        return logps, means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute each tile's logits again and multiply back through the head."""
        hidden, weight, bias, target_ids, lse = ctx.saved_tensors
        how: How = ctx.how
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        rows = hidden.to(how.dtype)
        by_hidden = torch.zeros_like(hidden, dtype=how.wide) if need_hidden else None
        by_weight = torch.empty_like(weight) if need_weight else None
        by_bias = torch.empty_like(bias) if need_bias else None
        for columns in _columns(weight, bias, rows.shape[0], how):
            # sums over blocks are wide: a bfloat16 sum would lose the late ones
            weight_sum, bias_sum = _Sum(), _Sum()
            for tile in columns.tiles(rows, target_ids):
                by_product = _by_product(tile, lse[tile.rows], grads[0][tile.rows], how)
                bias_sum.add(by_product.sum(0) if need_bias else None)
                by_product = by_product.to(how.dtype)
                if by_hidden is not None:
                    by_hidden[tile.rows] += by_product @ columns.weight
                if need_weight:
                    weight_sum.add((by_product.T @ tile.hidden).to(how.wide))
            if by_weight is not None:
                by_weight[columns.which] = weight_sum.value
            if by_bias is not None:
                by_bias[columns.which] = bias_sum.value
        if by_hidden is not None:
            by_hidden = by_hidden.to(hidden.dtype)
        return by_hidden, by_weight, by_bias, None, None


def _by_product(tile: _Tile, lse: Tensor, grad: Tensor, how: How) -> Tensor:
    """Gradient by hidden @ weight.T of a tile, given that by the log-probabilities."""
    slope = how.slope(tile.logits)
    by_logits = _exp_(tile.logits.sub_(lse[:, None])).mul_(-grad[:, None])
    own = (grad * tile.has_target).to(by_logits.dtype)
    by_logits.scatter_add_(1, tile.target[:, None], own[:, None])
    return by_logits if slope is None else by_logits.mul_(slope)


class _FrozenTokenLogps(torch.autograd.Function):
    """Of a head that does not train: its direction is all that the backward needs.

    The target's own part, (1 - p_t) W[t], is added at the end in float32: summed with the rest in
    a narrow dtype, it would cancel for the tokens that the model is sure of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        how: How,
    ) -> tuple[Tensor, Tensor]:
        """Keep the gradient of each log-probability by its hidden state."""
        rows = hidden.to(how.dtype)
        softmax = _Softmax(rows, how)
        others = torch.zeros_like(rows, dtype=how.wide)  # mass x sum of p W over other tokens
        for columns in _columns(weight, bias, rows.shape[0], how):
            for tile in columns.tiles(rows, target_ids):
                slope = how.slope(tile.logits)
                odds, shrink = softmax.add(tile)
                odds = odds if slope is None else odds.mul_(slope)
                target = tile.target[:, None]
                own = odds.gather(1, target)
                odds.scatter_(1, target, own.masked_fill(tile.has_target[:, None], 0))
                others[tile.rows] *= shrink[:, None]
                others[tile.rows] += odds.to(how.dtype) @ columns.weight
        lse = softmax.log_sum_exp()
        logps = softmax.picked - lse
        own = -torch.expm1(logps)
        slope = how.slope(softmax.picked)
        own = own if slope is None else own * slope
        others /= softmax.mass.to(how.wide)[:, None]
        ctx.save_for_backward(own[:, None] * weight[target_ids].to(how.wide) - others)
        ctx.dtype = hidden.dtype
        means = softmax.sums / weight.shape[0]
        ctx.mark_non_differentiable(means)
        return logps, means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Go that way, as far as the gradient says."""
        (direction,) = ctx.saved_tensors
        return (grads[0][:, None] * direction).to(ctx.dtype), None, None, None, None


class _Sum:
    """A sum that begins with its first term."""

    def __init__(self) -> None:
        self.value: Any = None

    def add(self, term: Tensor | None) -> None:
        """Add a term, if there is one."""
        if term is not None:
            self.value = term if self.value is None else self.value.add_(term)
