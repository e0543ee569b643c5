"""The head's log-probabilities: chunks, dtypes, soft-caps and gradients by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from counterpoint.forward import token_logps
from counterpoint.forward.token_logps import (
    affine_token_logps,
    dense_token_logps,
    module_token_logps,
)

ROWS, WIDTH, VOCAB = 7, 5, 11


def inputs(bias: bool, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=True)  # noqa: E731
    ids = torch.randint(VOCAB, (ROWS,), generator=generator)
    return make(ROWS, WIDTH), make(VOCAB, WIDTH), make(VOCAB) if bias else None, ids


@pytest.fixture(params=[1, 3, 100], ids="{} rows a chunk".format)
def chunks(request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_logps, "LOGITS_PER_CHUNK", request.param * VOCAB)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_by_hand_are_those_of_finite_differences(bias, softcap, scale):
    hidden, weight, b, ids = inputs(bias)

    def logps(*differentiable):
        return affine_token_logps(
            *differentiable, *([] if bias else [None]), ids, scale=scale, softcap=softcap
        )[0]

    arguments = (hidden, weight, b) if bias else (hidden, weight)
    assert torch.autograd.gradcheck(logps, arguments)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_module_and_its_weights_give_the_same(softcap):
    hidden, weight, bias, ids = inputs(bias=True)
    head = nn.Linear(WIDTH, VOCAB).double()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    affine = affine_token_logps(hidden, weight, bias, ids, scale=0.5, softcap=softcap)
    module = module_token_logps(hidden, head, ids, scale=0.5, softcap=softcap)
    for one, other in zip(affine, module, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)
    grads = torch.autograd.grad(affine[0].sum(), (hidden, weight, bias))
    others = torch.autograd.grad(module[0].sum(), (hidden, head.weight, head.bias))
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    hidden, weight, _, ids = inputs(bias=False)
    frozen = weight.detach()
    affine_token_logps(hidden, frozen, None, ids)[0].sum().backward()
    by_hand = hidden.grad.clone()
    hidden.grad = None
    dense_token_logps(hidden @ frozen.T, ids)[0].sum().backward()
    torch.testing.assert_close(by_hand, hidden.grad, rtol=1e-13, atol=1e-13)
    assert frozen.grad is None


def test_probabilities_of_the_whole_vocabulary_add_up_to_one():
    hidden, weight, _, _ = inputs(bias=False)
    every = [
        affine_token_logps(hidden, weight, None, torch.full((ROWS,), token))[0]
        for token in range(VOCAB)
    ]
    torch.testing.assert_close(torch.stack(every).exp().sum(0), torch.ones(ROWS).double())


def test_bfloat16_products_still_get_a_float32_log_sum_exp():
    """Within what rounding the products alone costs; log-softmax in bfloat16 is far outside."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    weight = torch.randn(5000, 32, generator=generator).bfloat16()
    ids = torch.randint(5000, (64,), generator=generator)
    logps, _ = affine_token_logps(hidden, weight, None, ids)
    rounded = (hidden @ weight.T).double()
    exact = rounded.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    narrow = (hidden @ weight.T).log_softmax(-1).gather(1, ids[:, None]).squeeze(1).double()
    assert logps.dtype == torch.float32
    assert (logps.double() - exact).abs().max() < 1e-4
    assert (narrow - exact).abs().max() > 1e-2


def test_a_bfloat16_gradient_of_the_weight_is_summed_in_float32(monkeypatch):
    """Summed in bfloat16 over 64 chunks, small contributions would vanish."""
    monkeypatch.setattr(token_logps, "LOGITS_PER_CHUNK", VOCAB)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(64, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    ids = torch.randint(VOCAB, (64,), generator=generator)
    affine_token_logps(hidden, weight, None, ids, dtype=torch.bfloat16)[0].sum().backward()
    exact = torch.autograd.grad(dense_token_logps(hidden @ weight.T, ids)[0].sum(), weight)[0]
    assert weight.grad.dtype == torch.float32
    assert (weight.grad - exact).norm() / exact.norm() < 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_the_cut_into_chunks_does_not_matter(rows: int, per_chunk: int):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCAB, (rows,), generator=generator)
    whole, _ = affine_token_logps(hidden, weight, None, ids)
    before = token_logps.LOGITS_PER_CHUNK
    token_logps.LOGITS_PER_CHUNK = per_chunk * VOCAB
    try:
        cut, _ = affine_token_logps(hidden, weight, None, ids)
    finally:
        token_logps.LOGITS_PER_CHUNK = before
    torch.testing.assert_close(whole, cut, rtol=1e-14, atol=1e-14)
