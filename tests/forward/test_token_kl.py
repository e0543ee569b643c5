"""The divergence of two heads: chunks, dtypes, soft-caps, frozen heads, gradients by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterpoint.forward import token_kl
from counterpoint.forward.affine_logps import finish_logits
from counterpoint.forward.token_kl import Affine, affine_token_kl, logits_token_kl

ROWS, WIDTH, VOCAB = 7, 5, 11


def heads(bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Affine, Affine]:
    """A policy that requires gradients, and an initial policy not far from it."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    first = [make(ROWS, WIDTH), make(VOCAB, WIDTH), make(VOCAB) if bias else None]
    moved = [
        None if x is None else (x + 0.1 * make(*x.shape)).detach().requires_grad_() for x in first
    ]
    return Affine(*moved), Affine(*first)


def textbook(
    policy: Affine, initial: Affine, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """All logits at once, and torch's own divergence."""
    now, then = (
        (scale * nn.functional.linear(h.hidden, h.weight, h.bias)).double()
        for h in (policy, initial)
    )
    if softcap is not None:
        now, then = (softcap * torch.tanh(x / softcap) for x in (now, then))
    return nn.functional.kl_div(
        now.log_softmax(-1), then.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)


def of_modules(
    policy: Affine, initial: Affine, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """The path of a head that is any module."""

    def under(head: Affine) -> Callable[[Tensor], Tensor]:
        return lambda rows: finish_logits(
            nn.functional.linear(rows, head.weight, head.bias), scale, softcap
        )

    return logits_token_kl(policy.hidden, under(policy), initial.hidden, under(initial))


PATHS: dict[str, Callable[..., Tensor]] = {"affine": affine_token_kl, "module": of_modules}


@pytest.fixture(params=[1, 2 * VOCAB + 1, 1000], ids="{} logits".format)
def chunks(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a chunk: one row, two rows, all rows."""
    monkeypatch.setattr(token_kl, "LOGITS_PER_CHUNK", {"cpu": request.param})


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_value_and_gradient_are_those_of_all_logits_at_once(path, bias, softcap, scale):
    policy, initial = heads(bias)
    pull = torch.linspace(-1, 2, ROWS).double()
    tensors = [x for x in (policy.hidden, policy.weight, policy.bias) if x is not None]
    found = PATHS[path](policy, initial, scale=scale, softcap=softcap)
    expected = textbook(policy, initial, scale, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    by_found = torch.autograd.grad(found, tensors, pull)
    for one, other in zip(by_found, torch.autograd.grad(expected, tensors, pull), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_passes_on_the_gradient_of_one_that_trains(bias, softcap):
    policy, initial = heads(bias)
    pull = torch.linspace(-1, 2, ROWS).double()
    frozen = Affine(
        policy.hidden, policy.weight.detach(), None if policy.bias is None else policy.bias.detach()
    )
    results = []
    for head in (policy, frozen):
        value = affine_token_kl(head, initial, scale=0.5, softcap=softcap)
        results.append((value, *torch.autograd.grad(value, head.hidden, pull)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_policy_that_has_not_moved_has_a_drift_of_exactly_zero_and_no_gradient(path, dtype):
    _, initial = heads(bias=True, dtype=dtype)
    policy = Affine(*(x.clone().requires_grad_() for x in vars_of(initial)))
    found = PATHS[path](policy, initial)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.0] * ROWS
    grads = torch.autograd.grad(found.sum(), vars_of(policy))
    assert all(not bool(grad.any()) for grad in grads)


def vars_of(head: Affine) -> list[Tensor]:
    assert head.bias is not None
    return [head.hidden, head.weight, head.bias]


@pytest.mark.parametrize("path", PATHS)
def test_a_small_drift_in_float32_is_off_by_the_roundings_of_logits_alone(path):
    """Rounding a log-sum-exp of about 12 costs 1e-6; the drift is of the same size."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 16, generator=generator)
    weight = 0.1 * torch.randn(50_000, 16, generator=generator)
    shift = 2e-3 * torch.randn(64, 16, generator=generator)
    policy, initial = Affine(hidden + shift, weight, None), Affine(hidden, weight, None)
    wide = [Affine(x.hidden.double(), weight.double(), None) for x in (policy, initial)]
    exact = textbook(*wide)
    found = PATHS[path](policy, initial)
    assert exact.max() < 2e-6
    assert float(found.min()) >= 0
    # a logit of about 1 is off by 2^-24 or so, each term by that times its gap, at random
    assert ((found - exact).abs() <= 0.02 * exact + 1e-9).all()


@pytest.mark.parametrize("path", PATHS)
def test_columns_masked_with_minus_infinity_change_nothing(path):
    policy, initial = heads(bias=True)
    expected = affine_token_kl(policy, initial)

    def masked(head: Affine) -> Affine:
        wide = torch.cat([head.weight, head.weight[:3]])
        return Affine(head.hidden, wide, torch.cat([head.bias, torch.full((3,), -torch.inf)]))

    found = PATHS[path](masked(policy), masked(initial))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)
    by_both = (torch.autograd.grad(x.sum(), policy.hidden)[0] for x in (found, expected))
    torch.testing.assert_close(*by_both, rtol=1e-13, atol=1e-16)


def test_a_token_that_the_policy_has_ruled_out_is_infinitely_far():
    policy, initial = heads(bias=True)
    bias = policy.bias.detach().clone()
    bias[2] = -torch.inf
    found = affine_token_kl(Affine(policy.hidden, policy.weight, bias), initial)
    assert torch.isinf(found).all()
    (grad,) = torch.autograd.grad(found.sum(), policy.hidden)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("path", PATHS)
def test_logits_of_all_targets_never_exist_at_once(path, monkeypatch):
    """Counted where both policies' logits meet, in forward and backward."""
    seen: list[int] = []
    original = token_kl._divergence

    def counted(logits: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        assert logits.shape == initial.shape
        seen.append(logits.shape[0])
        return original(logits, initial)

    monkeypatch.setattr(token_kl, "_divergence", counted)
    monkeypatch.setattr(token_kl, "LOGITS_PER_CHUNK", {"cpu": 2 * VOCAB})
    policy, initial = heads(bias=False)
    PATHS[path](policy, initial).sum().backward()
    assert max(seen) == 2
    assert sum(seen) == 2 * ROWS


def test_without_gradients_nothing_is_kept_and_a_frozen_head_keeps_a_direction_a_row():
    policy, initial = heads(bias=False)
    with torch.no_grad():
        quiet = affine_token_kl(policy, initial)
    assert quiet.grad_fn is None
    frozen = affine_token_kl(Affine(policy.hidden, policy.weight.detach(), None), initial)
    torch.testing.assert_close(quiet, frozen.detach(), rtol=0, atol=0)
    (kept,) = frozen.grad_fn.saved_tensors
    assert kept.shape == policy.hidden.shape


def test_a_bfloat16_gradient_of_the_weight_is_summed_in_float32(monkeypatch):
    """Summed in bfloat16 over 64 chunks, small contributions would vanish."""
    monkeypatch.setattr(token_kl, "LOGITS_PER_CHUNK", {"cpu": 1})
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(64, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    moved = (weight + 0.5 * torch.randn(VOCAB, WIDTH, generator=generator)).requires_grad_()
    policy, initial = Affine(hidden, moved, None), Affine(hidden, weight, None)
    affine_token_kl(policy, initial, dtype=torch.bfloat16).sum().backward()
    (exact,) = torch.autograd.grad(textbook(policy, initial).sum(), moved)
    assert moved.grad.dtype == torch.float32
    assert (moved.grad - exact).norm() / exact.norm() < 0.02
