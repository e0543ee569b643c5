"""FlashAttention's own kernel on shared rows, on CUDA; values and gradients."""

from __future__ import annotations

import pytest
import torch

from counterpoint.forward.kernel_proof import kernel_disagrees
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.varlen_attention import AVAILABLE, attend_varlen, varlen_plan
from tests.forward.test_layouts import pairs_of, value_and_gradient
from tests.forward.test_shared_attention import segments_of
from tests.forward.test_varlen_attention import LONG, PROOFS
from tests.steps import distance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.skipif(not AVAILABLE, reason="needs torch >= 2.11 with FlashAttention"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", PROOFS)
def test_the_kernel_passes_its_proof(call, dtype):
    assert kernel_disagrees(PROOFS[call], LONG, dtype, CUDA) is None


@pytest.mark.parametrize("window", [None, 1, 64, 700, 1023, 1024, 1025])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (192, 128), (96, 96)])
def test_long_rows_agree_with_pair_by_pair(window, heads, widths):
    """In norm, to four epsilons of the dtype; see ``kernel_proof.ROUNDINGS``."""
    segments = segments_of([(700, 324, 500), (1, 1, 1), (0, 130, 7), (64, 64, 64), (999, 3, 900)])
    tokens = sum(s.tokens for s in segments)
    generator = torch.Generator(CUDA).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=CUDA, dtype=torch.bfloat16)

    states = [
        random(1, heads[0], tokens, widths[0]),
        random(1, heads[1], tokens, widths[0]),
        random(1, heads[1], tokens, widths[1]),
    ]
    upstream = random(1, tokens, heads[0], widths[1])
    exact = [tensor.double().requires_grad_() for tensor in states]
    states = [tensor.requires_grad_() for tensor in states]
    expected = attend_to_pairs(*exact, segments, window=window)
    found = attend_varlen(*states, varlen_plan(segments, CUDA), window=window)
    limit = 4 * torch.finfo(torch.bfloat16).eps
    both = [
        (expected, found),
        *zip(
            torch.autograd.grad(expected, exact, upstream.double()),
            torch.autograd.grad(found, states, upstream),
            strict=True,
        ),
    ]
    for one, other in both:
        assert (one - other).norm() <= limit * one.norm()


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3"])
def test_models_in_bf16_learn_what_they_learn_in_float32(kind, models):
    """Both layouts in bf16 are as far from the float32 gradient, within a factor of two."""
    from counterpoint.forward.agreement import layouts_disagree
    from counterpoint.forward.head import find_head
    from counterpoint.forward.kernels import proofs_of
    from counterpoint.forward.layouts import PADDED, SHARED

    model = models(kind).to(CUDA)
    pairs = pairs_of([(40, 20, 30), (3, 50, 20), (64, 9, 1)], 0)
    padded, shared = PADDED.collate(pairs).to(CUDA), SHARED.collate(pairs).to(CUDA)
    truth = value_and_gradient(model, padded)[1]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert layouts_disagree(model, find_head(model), shared, padded) is None
        assert any(
            key[2] == torch.bfloat16 and bad is None for key, bad in proofs_of(model).items()
        )
        errors = [distance(truth, value_and_gradient(model, b)[1]) for b in (padded, shared)]
    assert errors[1] <= 2 * errors[0]
