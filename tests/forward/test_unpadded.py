"""Linear layers without padding: which tokens reach them, and that nothing else changes.

Values and gradients against one completion at a time are in ``test_encoded``.
"""

from __future__ import annotations

import copy
import weakref
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterpoint.forward.dropout import disable_dropout
from counterpoint.forward.encoded import ENCODER_ONCE
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.unpadded import PLACES, Places, unpadded
from counterpoint.models.checkpointing import enable_checkpointing
from counterpoint.models.family import family_of
from counterpoint.records import TokenPair
from tests.translators_on_the_spot import translator

PAIRS = [
    TokenPair([5] * source, [6, 7] * chosen, [8] * rejected, row=source, start=[0])
    for source, chosen, rejected in ((9, 2, 3), (4, 6, 1), (1, 1, 2))
]


def rows_into(model: nn.Module, names: tuple[str, ...], batch: Any) -> list[tuple[int, ...]]:
    """Shapes of what layers compute on, in the order of their names."""
    shapes = dict.fromkeys(names, ())
    head = family_of(model.config).find_head(model)
    with ExitStack() as open_:
        open_.enter_context(ENCODER_ONCE.running(model))
        for name in names:

            def see(module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = tuple(args[0].shape)

            handle = model.get_submodule(name).register_forward_pre_hook(see)
            open_.callback(handle.remove)
        pair_forward(model, head, batch)
    return list(shapes.values())


def test_each_real_token_goes_through_a_layer_once() -> None:
    model, _ = translator("t5")
    batch = ENCODER_ONCE.collate(PAIRS)
    names = (
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.k",
    )
    sources = sum(len(pair.prompt) for pair in PAIRS)
    rows = sum(len(pair.chosen) + len(pair.rejected) for pair in PAIRS)
    width = model.config.d_model
    # the sources that both completions look at are projected once
    assert rows_into(model, names, batch) == [(sources, width), (rows, width), (sources, width)]
    # and so are those of several pairs
    more = [*PAIRS, replace(PAIRS[0], chosen=[6], row=20), replace(PAIRS[1], row=21)]
    assert rows_into(model, names[::2], ENCODER_ONCE.collate(more)) == [(sources, width)] * 2


def test_sources_as_wide_as_rows_are_told_apart_by_leaving_rows_alone() -> None:
    model, _ = translator("t5")
    pair = TokenPair([5] * 4, [6] * 4, [7], row=0, start=[0])
    other = TokenPair([5], [6], [7], row=1, start=[0])
    batch = ENCODER_ONCE.collate([pair, other])
    names = (
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
    )
    width = model.config.d_model
    assert rows_into(model, names, batch) == [(5, width), (4, 4, width)]


def test_what_is_gathered_comes_back_to_its_place() -> None:
    real = np.array([[True, True, False], [False, False, True]])
    states = torch.arange(12.0).view(2, 3, 2)
    places = Places.of(real)
    assert places is not None
    packed = places.gathered(states)
    assert packed.tolist() == [[0, 1], [2, 3], [10, 11]]
    assert torch.equal(places.put_back(packed), states * torch.from_numpy(real)[..., None])

    twice = Places.of(real, shows=[0, 1] * 2)
    assert twice is not None
    assert twice.fits(torch.cat([states, states]))
    assert not twice.fits(states)
    assert torch.equal(
        twice.put_back(packed), torch.cat([states * torch.from_numpy(real)[..., None]] * 2)
    )
    assert Places.of(np.ones((2, 3), dtype=bool)) is None


def test_the_gradient_is_that_of_all_copies() -> None:
    real = np.array([[True, False]])
    twice = Places.of(real, shows=[0, 0])
    assert twice is not None
    packed = torch.tensor([[1.0]], requires_grad=True)
    (twice.put_back(packed) * torch.tensor([[[2.0], [9.0]], [[3.0], [9.0]]])).sum().backward()
    assert packed.grad is not None
    assert packed.grad.item() == 5.0


def test_layers_that_are_recomputed_skip_the_same_padding() -> None:
    model = copy.deepcopy(translator("nllb", torch.float64)[0])
    disable_dropout(model)
    model.train()
    head = family_of(model.config).find_head(model)
    batch = ENCODER_ONCE.collate(PAIRS)

    def gradient() -> Tensor:
        model.zero_grad()
        with ENCODER_ONCE.running(model):
            logps = pair_forward(model, head, batch).logps
            (logps.chosen - logps.rejected).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(grads)

    plain = gradient()
    enable_checkpointing(model, {"use_reentrant": False})
    assert torch.dist(gradient(), plain) <= 1e-12 * plain.norm()


def test_a_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    places = Places.of(np.array([[True, False]]))

    def call(states: Tensor, **named: Any) -> Tensor:
        assert PLACES not in named
        return nn.Sequential.forward(model, states)

    model.forward = call  # type: ignore[method-assign]
    states = torch.ones(1, 2, 2)
    with unpadded(model, {"all": model}):
        skipped = model(states, **{PLACES: {"all": (places,)}})
        # places hold for one call
        assert torch.equal(model(states)[0, 1], model(states)[0, 0])
    assert torch.equal(skipped[0, 1], torch.zeros(2))
    hooks = [model._forward_pre_hooks, model[0]._forward_pre_hooks, model[0]._forward_hooks]
    assert not any(hooks)
    with pytest.raises(AssertionError):
        model(states, **{PLACES: {}})


class Projections(nn.Module):
    """As attention's: several layers of the same rows, and one of what came of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ways = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 4)

    def forward(self, states: Tensor) -> Tensor:
        states = states.tanh()
        return self.out(torch.stack([way(states) for way in self.ways]).sum(0))


def test_rows_are_kept_once_for_all_layers_that_read_them(monkeypatch: Any) -> None:
    model = Projections().double()
    places = Places.of(np.array([[True, False, False], [True, True, False]]))
    assert places is not None
    states = torch.randn(2, 3, 4, dtype=torch.float64)
    packed, gathered = [], Places.gathered

    def watched(self: Places, states: Tensor) -> Tensor:
        found = gathered(self, states)
        packed.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Places, "gathered", watched)
    with unpadded(model, {"all": model}):
        said = model(states, **{PLACES: {"all": (places,)}})
    assert len(packed) == 4
    assert [one() for one in packed] == [None] * 4
    real = torch.tensor([[1.0, 0, 0], [1, 1, 0]], dtype=torch.float64)[..., None]
    (said * real).sum().backward()
    assert len(packed) == 8
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    (model(states) * real).sum().backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        assert one is not None
        assert parameter.grad is not None
        assert torch.dist(one, parameter.grad) <= 1e-14 * parameter.grad.norm()


def test_an_input_that_is_changed_afterwards_is_no_gradient_of_another() -> None:
    layer = nn.Linear(2, 2)
    places = Places.of(np.array([[True, False]]))
    states = torch.ones(1, 2, 2)
    with unpadded(layer, {"all": layer}):
        said = layer(states, **{PLACES: {"all": (places,)}})
        states += 1
        with pytest.raises(RuntimeError, match="changed in place"):
            said.sum().backward()


def test_a_layer_that_fails_leaves_nothing_open() -> None:
    layer = nn.Linear(3, 2)  # of another width than its input
    places = Places.of(np.array([[True, False]]))
    with unpadded(layer, {"all": layer}), pytest.raises(RuntimeError, match="shapes"):
        layer(torch.ones(1, 2, 2), **{PLACES: {"all": (places,)}})
    # hooks that were left would be found by the next layer, and closed in the wrong order
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
