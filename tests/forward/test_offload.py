"""Laws of activations on the host: what is large goes, weights stay, and no bit is another."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from counterpoint.forward.offload import LEAST, activations_on_host, copied, offloading
from counterpoint.models.checkpointing import enable_checkpointing
from tests.models.test_checkpointing import gradients


class Trips:
    """Counts what goes to the host and what comes back."""

    def __init__(self) -> None:
        self.gone: list[torch.Tensor] = []
        self.back = 0

    def going(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = copied(tensor, tensor.device)
        self.gone.append(copy)
        return copy

    def coming(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.back += 1
        return copied(tensor, device)

    def open(self, least: int = 0):
        return activations_on_host(least=least, to_host=self.going, back=self.coming)


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe", "gemma2"])
@pytest.mark.parametrize("share", [None, 1.0, 0.5])
def test_the_gradient_is_the_same_bit_for_bit(models, kind: str, layout: str, share: float | None):
    model = models(kind, num_hidden_layers=3)
    plain = gradients(model, layout=layout)
    if share:
        enable_checkpointing(model, share=share)
    trips = Trips()
    with trips.open():
        again = gradients(model, layout=layout)
    assert trips.gone
    assert trips.back
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_with_checkpointing_little_more_than_each_layers_input_travels(models):
    model = models("qwen2", num_hidden_layers=6)
    all_of_it, inputs = Trips(), Trips()
    with all_of_it.open():
        plain = gradients(model, layout="shared")
    model.enable_input_require_grads()
    enable_checkpointing(model, {})
    with inputs.open():
        again = gradients(model, layout="shared")
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    size = [sum(tensor.nbytes for tensor in trips.gone) for trips in (all_of_it, inputs)]
    assert 0 < size[1] < size[0] / 2


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.t(),
        lambda x: x[1:, 2:5],
        lambda x: x[::2],
        lambda x: x[0].expand(4, -1),
        lambda x: x[:0],
        lambda x: x.sum(),
    ],
)
def test_a_copy_lies_as_its_original_does_and_shares_nothing_with_it(view):
    original = view(torch.randn(6, 7))
    copy = copied(original, torch.device("cpu"))
    assert torch.equal(copy, original)
    assert copy.stride() == original.stride()
    if original.numel():
        assert copy.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()


def test_weights_and_what_is_small_stay():
    layer, trips = nn.Linear(40, 30), Trips()
    states = torch.randn(20, 40, requires_grad=True)
    with trips.open():
        (layer(states) * layer.bias).sum().backward()
    weights = {layer.weight.untyped_storage().data_ptr(), layer.bias.untyped_storage().data_ptr()}
    sizes = {tuple(tensor.shape) for tensor in trips.gone}
    assert (40, 30) not in sizes
    assert (30, 40) not in sizes
    assert (20, 40) in sizes
    assert not weights & {tensor.untyped_storage().data_ptr() for tensor in trips.gone}
    few = Trips()
    with few.open(least=10**6):
        layer(states).sum().backward()
    assert few.gone == []


def test_the_copy_is_what_the_backward_computes_with():
    """Were the tensor itself kept, its memory would not be free for others."""
    states = torch.randn(5, requires_grad=True)
    with activations_on_host(least=0, to_host=lambda t: t.clone().zero_()):
        states.sin().sum().backward()
    assert torch.equal(states.grad, torch.ones(5))  # cosine of zero


def test_the_rooms_own_copies_keep_every_bit():
    states = torch.randn(2**7, 2**8, requires_grad=True)
    with activations_on_host():
        assert states.numel() * 4 >= LEAST
        states.exp().square().sum().backward()
    kept, states.grad = states.grad, None
    states.exp().square().sum().backward()
    assert torch.equal(kept, states.grad)


def test_a_tensor_that_changes_after_it_was_kept_is_found_out_or_was_copied_before():
    for least, error in ((0, None), (10**6, "modified by an inplace operation")):
        states = torch.ones(4, requires_grad=True)
        with activations_on_host(least=least):
            half = states * 0.5
            square = half.square()
            half.add_(1)
        with pytest.raises(RuntimeError, match=error) if error else nullcontext():
            square.sum().backward()
        assert error or torch.equal(states.grad, torch.full((4,), 0.5))


def test_on_a_cpu_and_unasked_nothing_is_hooked():
    assert isinstance(offloading(torch.device("cpu"), wanted=True), nullcontext)
    assert isinstance(offloading(torch.device("cuda"), wanted=False), nullcontext)
    assert not isinstance(offloading(torch.device("cuda"), wanted=True), nullcontext)
