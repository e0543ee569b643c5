"""The proof of kernels for shared rows: values and gradients against the pairwise way.

The layouts are compared in the weights' precision, where the CUDA kernel does not run; a run in 16
bits would then rest on a kernel that nobody has looked at on its machine. So it is compared too:
random inputs of the model's own heads and widths, lengths of the run's first pairs, the pairwise
way in float32 as the truth. Where it disagrees, attention goes pair by pair, which is slower and
right. Not at the first use, which may be inside a checkpointed layer: there a second forward must
do what the first did.

Not here: the layouts' proof (``agreement``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from counterpoint.errors import kind_and_line
from counterpoint.forward.kernels import ATTENTION_KERNELS, VARLEN, AttentionKernel, proofs_here
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.varlen_attention import AttentionCall
from counterpoint.log import logger
from counterpoint.pair_segments import PairSegments

MOST_PAIRS = 4
MOST_TOKENS = 96
"""Pairs, and tokens of a prompt or completion, that the proof looks at. A prompt and a completion
then cross the 128 keys of a kernel's block, and a window that is one key too wide is still seen:
among a hundred keys one is a tenth of the result, in norm, and rounding 3e-3."""

ROUNDINGS = 4
"""Allowed difference, in epsilons of the dtype. A result has up to three roundings to 16 bits
behind it (weights, their gradients, the result), half an epsilon each in norm; the rest is for
what cancels."""


def prove_kernel(
    call: AttentionCall,
    segments: Sequence[PairSegments],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Let attention of this kind use the kernels that are right; of others say why not.

    What an earlier process of the run has found (``kernels.load_state_dict``) is not found again.
    What is found is kept for the model whose attention is running (``kernels.proofs_running``).

    Args:
        call: the attention.
        segments: of the run's first row.
        dtype: in which the run's attention runs.
        device: where.
    """
    for name, kernel in ATTENTION_KERNELS.items():
        # no soft-cap and no sink: what a call does with them it does not say
        can = kernel.runs_on(device) and call.plain and kernel.takes(call, dtype)
        if kernel.trusted or not can:
            continue
        key = (name, call, dtype)
        proofs = proofs_here()
        if key not in proofs:
            proofs[key] = kernel_disagrees(call, segments, dtype, device, kernel)
        if proofs[key] is not None:
            logger().warning("attention goes pair by pair: %s %s", kernel.owner, proofs[key])


def kernel_disagrees(
    call: AttentionCall,
    segments: Sequence[PairSegments],
    dtype: torch.dtype,
    device: torch.device,
    kernel: AttentionKernel = VARLEN,
) -> str | None:
    """Compare a kernel with the pairwise way.

    Args:
        call: the attention; a window wider than the proof's rows is made to bind.
        segments: lengths that a run has.
        dtype: of 16 bits.
        device: where the kernel runs.
        kernel: that one.

    Returns:
        None where they agree; else what was seen.
    """
    row = _short_row(segments)
    longest = max(max(s.completions) + s.prompt for s in row)
    if call.window is not None:
        call = replace(call, window=min(call.window, longest // 2 + 1))
    inputs = _random_inputs(call, sum(s.tokens for s in row), dtype, device)
    # not the default, so that a scale that is not heeded shows
    options = {"scaling": 0.75 * call.width**-0.5, "window": call.window}
    plan = kernel.plan(row, device)
    try:
        with torch.autocast(device.type, enabled=False):
            exact = [tensor.float() for tensor in inputs]
            expected = _value_and_gradients(
                lambda q, k, v: attend_to_pairs(q, k, v, row, **options), exact
            )
            found = _value_and_gradients(
                lambda q, k, v: kernel.run(q, k, v, plan, **options), inputs
            )
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"kernel fails with {kind_and_line(error)}"
    limit = ROUNDINGS * torch.finfo(dtype).eps
    names = ("values", "gradient of queries", "gradient of keys", "gradient of values")
    for name, one, other in zip(names, expected, found, strict=True):
        difference = float((one - other.float()).norm() / one.norm())
        # a comparison with NaN is false, hence the negation
        if not difference <= limit:
            return f"{name} differ by {difference:.1e} where {limit:.0e} is rounding"
    return None


def _short_row(segments: Sequence[PairSegments]) -> tuple[PairSegments, ...]:
    row, start = [], 0
    for segment in segments[:MOST_PAIRS]:
        prompt, *sides = (min(n, MOST_TOKENS) for n in (segment.prompt, *segment.completions))
        row.append(PairSegments(0, start, prompt, tuple(sides)))
        start += row[-1].tokens
    return tuple(row)


def _random_inputs(
    call: AttentionCall, tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Queries, keys, values and the gradient of the result; the run's own randomness is left."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (1, call.heads, tokens, call.width),
        (1, call.kv_heads, tokens, call.width),
        (1, call.kv_heads, tokens, call.value_width),
        (1, tokens, call.heads, call.value_width),
    ]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def _value_and_gradients(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]
) -> list[Tensor]:
    states = [tensor.requires_grad_() for tensor in inputs[:3]]
    with torch.enable_grad():
        attended = attend(*states)
        return [attended.detach(), *torch.autograd.grad(attended, states, inputs[3])]
