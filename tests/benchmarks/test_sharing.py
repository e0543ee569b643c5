"""The row without sharing is the shared one in everything but sharing."""

from __future__ import annotations

import pytest
import sharing
import torch

from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.records import TokenPair
from tests.models_on_the_spot import make_model

PAIRS = [
    TokenPair(prompt=[5, 6, 7, 8], chosen=[9, 10, 2], rejected=[11, 2], row=0),
    TokenPair(prompt=[12], chosen=[13, 2], rejected=[14, 15, 16, 2], row=1),
]


def test_without_sharing_every_pair_has_the_same_log_probabilities():
    model = make_model("qwen2").double()
    head = find_head(model)
    expected = pair_forward(model, head, PADDED.collate(PAIRS)).logps
    for collate in (sharing.collate_unshared, SHARED.collate):
        with shared_attention(model):
            found = pair_forward(model, head, collate(PAIRS)).logps
        for side in ("chosen", "rejected"):
            torch.testing.assert_close(
                getattr(found, side), getattr(expected, side), rtol=1e-10, atol=0
            )


def test_without_sharing_each_prompt_is_there_twice_and_nothing_is_padded():
    row = sharing.collate_unshared(PAIRS)
    assert row.input_ids.tolist() == [
        [5, 6, 7, 8, 9, 10, 2, 5, 6, 7, 8, 11, 2, 12, 13, 2, 12, 14, 15, 16, 2]
    ]
    assert row.attention_mask.all()
    shared = SHARED.collate(PAIRS)
    assert row.input_ids.numel() / shared.input_ids.numel() == pytest.approx(sharing.limit(PAIRS))
    assert sharing.limit(PAIRS) == pytest.approx(1 + 5 / 16)


def test_the_trunk_alone_still_sends_a_gradient_through_every_layer():
    model = make_model("qwen2")
    head = sharing.TrunkOnly(find_head(model).module)
    sharing.seconds_of(model, head, sharing.collate_unshared(PAIRS), bf16=False)
    with shared_attention(model):
        logps = pair_forward(model, head, SHARED.collate(PAIRS)).logps
        (logps.chosen - logps.rejected).sum().backward()
    layers = [p for name, p in model.named_parameters() if "layers" in name]
    assert all(p.grad is not None and p.grad.any() for p in layers)
    assert find_head(model).module.weight.grad is None
