"""The head's log-probabilities: tiles, dtypes, soft-caps, frozen heads, gradients by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from counterpoint.forward import affine_logps, token_logps
from counterpoint.forward.affine_logps import affine_token_logps
from counterpoint.forward.token_logps import dense_token_logps, module_token_logps
from tests.reliability.trials import TORTURE

ROWS, WIDTH, VOCAB = 7, 5, 11


def inputs(bias: bool, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype, requires_grad=True)  # noqa: E731
    ids = torch.randint(VOCAB, (ROWS,), generator=generator)
    return make(ROWS, WIDTH), make(VOCAB, WIDTH), make(VOCAB) if bias else None, ids


@pytest.fixture(params=[(1, 1), (3, 12), (100, 21), (100, 1000)], ids="{0[0]} rows, {0[1]}".format)
def tiles(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and logits of a tile, from one logit to all of them."""
    rows, logits = request.param
    monkeypatch.setattr(affine_logps, "MOST_ROWS", rows)
    monkeypatch.setattr(affine_logps, "LOGITS_PER_TILE", {"cpu": logits})
    monkeypatch.setattr(token_logps, "LOGITS_PER_CHUNK", rows * VOCAB)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_by_hand_are_those_of_finite_differences(bias, softcap, scale):
    one_by_one = affine_logps.LOGITS_PER_TILE["cpu"] == 1
    if one_by_one and not TORTURE and (bias, softcap, scale) != (True, 2.0, 0.25):
        pytest.skip("one logit a tile takes seconds; make torture tries all")
    hidden, weight, b, ids = inputs(bias)

    def logps(*differentiable):
        return affine_token_logps(
            *differentiable, *([] if bias else [None]), ids, scale=scale, softcap=softcap
        )[0]

    arguments = (hidden, weight, b) if bias else (hidden, weight)
    assert torch.autograd.gradcheck(logps, arguments)


@pytest.mark.usefixtures("tiles")
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


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_frozen_head_passes_on_the_gradient_of_one_that_trains(bias, softcap, scale):
    hidden, weight, b, ids = inputs(bias)
    pull = torch.linspace(-1, 2, ROWS).double()
    options = {"scale": scale, "softcap": softcap}
    trained, means = affine_token_logps(hidden, weight, b, ids, **options)
    (expected,) = torch.autograd.grad(trained, hidden, pull)
    frozen, same = affine_token_logps(
        hidden, weight.detach(), None if b is None else b.detach(), ids, **options
    )
    (found,) = torch.autograd.grad(frozen, hidden, pull)
    torch.testing.assert_close(frozen, trained, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(same, means, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("trains", [True, False])
def test_a_token_that_is_nearly_certain_keeps_its_small_gradient_in_bfloat16(trains):
    """(1 - p) W[t] and the other tokens' part cancel nearly; rounded apart they would be lost."""
    weight = torch.eye(8).bfloat16().float().requires_grad_(trains)
    hidden = (10 * weight.detach()[:1]).requires_grad_()
    ids = torch.zeros(1, dtype=torch.long)
    logps, _ = affine_token_logps(hidden, weight, None, ids, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(logps.sum(), hidden)
    wide = hidden.detach().double().requires_grad_()
    exact = dense_token_logps(wide @ weight.detach().double().T, ids)[0]
    (expected,) = torch.autograd.grad(exact.sum(), wide)
    assert expected.abs().max() < 1e-3  # far below what bfloat16 tells from 1
    assert (found - expected).norm() / expected.norm() < 2**-7


def test_without_gradients_nothing_is_kept():
    hidden, weight, _, ids = inputs(bias=False)
    with torch.no_grad():
        quiet, means = affine_token_logps(hidden, weight, None, ids)
    assert quiet.grad_fn is None
    loud, others = affine_token_logps(hidden, weight, None, ids)
    torch.testing.assert_close((quiet, means), (loud.detach(), others), rtol=0, atol=0)
    (kept,) = affine_token_logps(hidden, weight.detach(), None, ids)[0].grad_fn.saved_tensors
    assert kept.shape == hidden.shape  # one direction a row is all that a frozen head leaves


def test_columns_masked_with_minus_infinity_change_nothing(monkeypatch):
    monkeypatch.setattr(affine_logps, "LOGITS_PER_TILE", {"cpu": 2 * ROWS})
    hidden, weight, _, ids = inputs(bias=False)
    bias = torch.zeros(VOCAB + 6).double()
    bias[:4] = bias[-2:] = -torch.inf  # the first tiles hold nothing else
    wide = torch.cat([weight[:4], weight, weight[:2]])
    found, _ = affine_token_logps(hidden, wide, bias, ids + 4)
    expected, _ = affine_token_logps(hidden, weight, None, ids)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    by_both = (torch.autograd.grad(x.sum(), hidden)[0] for x in (found, expected))
    torch.testing.assert_close(*by_both, rtol=1e-13, atol=1e-13)


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
    """Summed in bfloat16 over 64 blocks, small contributions would vanish."""
    monkeypatch.setattr(affine_logps, "MOST_ROWS", 1)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(64, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    ids = torch.randint(VOCAB, (64,), generator=generator)
    affine_token_logps(hidden, weight, None, ids, dtype=torch.bfloat16)[0].sum().backward()
    exact = torch.autograd.grad(dense_token_logps(hidden @ weight.T, ids)[0].sum(), weight)[0]
    assert weight.grad.dtype == torch.float32
    assert (weight.grad - exact).norm() / exact.norm() < 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 400))
def test_the_cut_into_tiles_does_not_matter(rows: int, most_rows: int, logits: int):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCAB, (rows,), generator=generator)
    whole = affine_token_logps(hidden, weight, None, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine_logps, "MOST_ROWS", most_rows)
        patch.setattr(affine_logps, "LOGITS_PER_TILE", {"cpu": logits})
        cut = affine_token_logps(hidden, weight, None, ids)
    torch.testing.assert_close(whole, cut, rtol=1e-14, atol=1e-14)


def test_the_faster_exponential_is_the_exponential():
    """exp(x) = 2^(x log2 e): the product's rounding is |x| / 2 ulp, and nothing under e^-104."""
    x = torch.linspace(-110, 0, 10001)
    exact = x.double().exp()
    found = affine_logps._exp_(x.clone()).double()
    assert ((found - exact).abs() <= exact * 2**-23 * (2 + x.double().abs()) + 2e-45).all()
