"""Sharing a prompt changes nothing: values, gradients, and the cases where it must not be tried."""

from __future__ import annotations

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.collate import collate_padded, collate_shared
from counterpoint.forward.head import find_head
from counterpoint.forward.layout import layouts_disagree, why_not_shared
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.shared_attention import attend_to_pairs, shared_attention
from counterpoint.records import PairSegments, TokenPair
from tests.forward.test_pair_forward import token_pairs
from tests.models_on_the_spot import KINDS, make_model
from tests.steps import distance

EXPERTS = {"qwen3_moe", "mixtral"}


def value_and_gradient(model, batch, *, top_k: int | None = None):
    """A sum that weighs every pair and side differently, and its gradient."""
    model.zero_grad()
    with shared_attention(model):
        output = pair_forward(model, find_head(model), batch, top_k=top_k)
        weights = torch.arange(1, len(batch) + 1)
        total = (output.logps.chosen * weights - 0.3 * output.logps.rejected).sum()
        if output.router is not None:
            total = total + (output.router.sent * output.router.probability).sum()
        total.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total.item(), gradient


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prompt_gives_the_gradient_of_two(kind, checkpointed, models):
    model = models(kind)
    if checkpointed:
        enable = "activation_checkpointing_enable"  # the name that newer releases have
        getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()
        model.train()
    top_k = 2 if kind in EXPERTS else None
    pairs = token_pairs(5)
    padded = value_and_gradient(model, collate_padded(pairs, pad_id=0), top_k=top_k)
    shared = value_and_gradient(model, collate_shared(pairs), top_k=top_k)
    assert shared[0] == pytest.approx(padded[0], rel=1e-5)
    assert distance(padded[1], shared[1]) <= 1e-5


@pytest.mark.parametrize("kind", ["phi", "gpt2"])
def test_in_float64_they_agree_to_rounding(kind, models):
    """On models without RMSNorm, which transformers computes in fp32 whatever the weights."""
    model, pairs = models(kind).double(), token_pairs(5)
    padded = value_and_gradient(model, collate_padded(pairs, pad_id=0))
    shared = value_and_gradient(model, collate_shared(pairs))
    assert distance(padded[1], shared[1]) <= 1e-12


ids = st.lists(st.integers(3, 383), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=4))
def test_any_lengths_agree(parts):
    model = make_model("gemma2", sliding_window=4)
    pairs = [TokenPair(*part, row) for row, part in enumerate(parts)]
    padded = value_and_gradient(model, collate_padded(pairs, pad_id=0))
    shared = value_and_gradient(model, collate_shared(pairs))
    assert distance(padded[1], shared[1]) <= 1e-5


def test_a_pair_without_a_prompt_predicts_from_its_completions_alone(models):
    model, pairs = models("phi").double(), [TokenPair([], [5, 6, 7], [8, 9], 0)]
    padded = value_and_gradient(model, collate_padded(pairs, pad_id=0))
    shared = value_and_gradient(model, collate_shared(pairs))
    assert shared[0] == pytest.approx(padded[0], rel=1e-12)


def test_a_rejected_token_sees_its_prompt_and_no_chosen_token():
    """Values tell where attention came from: one-hot by segment."""
    segments = (PairSegments(0, 0, 2, 3, 2), PairSegments(0, 7, 1, 1, 1))
    owner = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 4, 5])
    values = torch.nn.functional.one_hot(owner, 6).double()[None, None]
    zeros = torch.zeros(1, 1, 10, 4, dtype=torch.float64)
    seen = attend_to_pairs(zeros, zeros, values, segments)[0, :, 0]
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0],
            [2 / 3, 1 / 3, 0, 0, 0, 0],
            [2 / 4, 2 / 4, 0, 0, 0, 0],
            [2 / 5, 3 / 5, 0, 0, 0, 0],
            [2 / 3, 0, 1 / 3, 0, 0, 0],
            [2 / 4, 0, 2 / 4, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 1 / 2, 1 / 2, 0],
            [0, 0, 0, 1 / 2, 0, 1 / 2],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(seen, expected)


def test_the_models_own_attention_is_back_afterwards_and_works_meanwhile(models):
    model = models("gemma2")
    ids = torch.randint(3, 300, (2, 9))
    before = model(ids).logits
    with shared_attention(model):
        during = model(ids).logits
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(before, during)
    torch.testing.assert_close(before, model(ids).logits)


def test_nothing_speaks_against_plain_models(models):
    assert [kind for kind in KINDS if why_not_shared(models(kind)) is not None] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_dropout": 0.1}, "dropout is on"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            "layers of kind linear_attention",
        ),
    ],
)
def test_what_forbids_sharing_is_named(change, reason, models):
    model = models("qwen2")
    for name, value in change.items():
        setattr(model.config, name, value)
        for layer in model.model.layers:
            setattr(layer.self_attn, name, value)
    assert reason in why_not_shared(model)


def test_prompt_learning_is_not_shared(models):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "prompt learning" in why_not_shared(peft.get_peft_model(models("qwen2"), config))


def test_an_adapted_model_shares(models):
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False
    )
    model, pairs = peft.get_peft_model(models("qwen2"), config), token_pairs(3)
    padded = value_and_gradient(model, collate_padded(pairs, pad_id=0))
    shared = value_and_gradient(model, collate_shared(pairs))
    assert distance(padded[1], shared[1]) <= 1e-5


def test_the_proof_passes_where_layouts_agree_and_not_where_they_do_not(models, monkeypatch):
    model, pairs = models("llama"), token_pairs(2)
    batches = collate_shared(pairs), collate_padded(pairs, pad_id=0)
    assert layouts_disagree(model, find_head(model), *batches) is None

    def leaky(query, key, value, segments, **options):
        whole = sum(sum(s[2:]) for s in segments)
        return attend_to_pairs(query, key, value, (PairSegments(0, 0, 0, whole, 0),), **options)

    import counterpoint.forward.shared_attention as module

    monkeypatch.setattr(module, "attend_to_pairs", leaky)
    assert "log-probabilities differ" in layouts_disagree(model, find_head(model), *batches)
