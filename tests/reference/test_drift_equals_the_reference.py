"""Law 2 for the drift from the initial policy: against all logits of single rows, in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from torch import nn

from counterpoint.forward import token_kl
from counterpoint.forward.head import find_head, prove_head
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.records import TokenPair
from tests.float64 import Float64Throughout
from tests.models_on_the_spot import make_model
from tests.reference.naive import drift
from tests.steps import distance, random_pairs

LIMIT = 1e-11
"""Relative; some thousand roundings of 1e-16, of differences a hundredth of what is subtracted."""


class Sharpened(nn.Module):
    """Does something to its logits that no configuration mentions: its head is dense."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.inner(*args, **kwargs)
        outputs.logits = outputs.logits * 1.7
        return outputs


def adapted(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **options)
    return peft.get_peft_model(make_model("qwen2"), config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: make_model("qwen2"),
    "tied": lambda: make_model("qwen2_tied"),
    "with a bias": lambda: make_model("phi"),
    "with a soft-cap": lambda: make_model("gemma2"),
    "with a scale": lambda: make_model("cohere"),
    "with experts": lambda: make_model("qwen3_moe"),
    "adapted": lambda: adapted(target_modules=["q_proj", "v_proj"]),
    "head adapted": lambda: adapted(target_modules=["q_proj", "lm_head"]),
    "head trained whole": lambda: adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "dense": lambda: Sharpened(make_model("qwen2")),
}


def move(model: nn.Module) -> None:
    """What training would do."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn_like(weight)


CASES = [
    *((kind, layout) for kind in MODELS for layout in ("padded", "shared") if kind != "dense"),
    ("dense", "padded"),  # a model that is wrapped keeps its prompts apart
]


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_drift_and_its_gradient_are_those_of_single_rows(kind, layout, monkeypatch):
    monkeypatch.setattr(token_kl, "LOGITS_PER_CHUNK", {"cpu": 8 * 640})
    model = MODELS[kind]().double()
    initial, policy = deepcopy(model), InitialPolicy(model)
    move(model)
    pairs = [
        TokenPair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], row["row"])
        for row in random_pairs(4, seed=5)
    ]
    with Float64Throughout():
        expected = torch.stack(
            [
                sum(drift(model, initial, p.prompt, done) for done in (p.chosen, p.rejected))
                for p in pairs
            ]
        )
        expected.sum().backward()
        truth = gradients(model)
        head = prove_head(model, find_head(model), torch.tensor([pairs[0].prompt]))
        assert head.dense == (kind == "dense")
        shared = layout == "shared"
        batch = SHARED.collate(pairs) if shared else PADDED.collate(pairs)
        with shared_attention(model) if shared else nullcontext():
            found = pair_forward(model, head, batch, initial=policy).logps.drift
            found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=LIMIT, atol=0)
    assert distance(truth, gradients(model)) <= LIMIT


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """And none are left behind."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
