"""Sharing a prompt changes nothing: values, gradients, and the cases where it must not be tried."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.forward.agreement import layouts_disagree
from counterpoint.forward.gradient_proof import largest_difference
from counterpoint.forward.head import find_head
from counterpoint.forward.in_double import fits_in_double
from counterpoint.forward.kernels import ATTENTION_KERNELS, PAIRWISE
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.routing import find_routers
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.forward.trunk import trunk
from counterpoint.pair_segments import PairSegments
from counterpoint.records import FILLER_ROW, TokenPair
from tests.float64 import Float64Throughout
from tests.forward.test_pair_forward import token_pairs
from tests.models_on_the_spot import APART, KINDS, make_model
from tests.reliability.trials import trials
from tests.steps import distance

EXPERTS = ["qwen3_moe", "mixtral", "gpt_oss"]
"""Those whose router is balanced."""


def value_and_gradient(model, batch):
    """A sum that weighs every pair and side differently, and its gradient."""
    model.zero_grad()
    with shared_attention(model):
        output = pair_forward(model, find_head(model), batch, routers=find_routers(model))
        weights = torch.arange(1, len(batch) + 1, device=batch.input_ids.device)
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
    pairs = token_pairs(5)
    padded = value_and_gradient(model, PADDED.collate(pairs))
    shared = value_and_gradient(model, SHARED.collate(pairs))
    assert shared[0] == pytest.approx(padded[0], rel=1e-5)
    assert distance(padded[1], shared[1]) <= 1e-5


def pairs_of(lengths, seed: int) -> list[TokenPair]:
    """Pairs of random ids with given lengths of prompt, chosen and rejected."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 384, (length,), generator=generator).tolist()

    return [TokenPair(*map(ids, parts), row) for row, parts in enumerate(lengths)]


def gap(model, pairs) -> float:
    """Relative distance of the gradients of both layouts."""
    padded = value_and_gradient(model, PADDED.collate(pairs))
    shared = value_and_gradient(model, SHARED.collate(pairs))
    return distance(padded[1], shared[1])


@cache
def kept(kind: str, dtype: torch.dtype):
    """A model that no test changes; made once for all examples."""
    return make_model(kind).to(dtype)


# up to 20 tokens a part: shorter, as long as and longer than the windows of 8 to 16
some_pairs = st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=1, max_size=4)
# the same examples in every run: two experts may tie to 1e-7, and rounding then picks one
few_examples = settings(max_examples=8, derandomize=True)
# float64, ten million times as strict, has all of them in CI
fewer_examples = settings(max_examples=trials(3, 8), derandomize=True)


@pytest.mark.parametrize("kind", KINDS)
@fewer_examples
@given(some_pairs, st.integers(0, 999))
def test_pairs_of_any_lengths_agree(kind, lengths, seed):
    assert gap(kept(kind, torch.float32), pairs_of(lengths, seed)) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@few_examples
@given(some_pairs, st.integers(0, 999))
def test_in_float64_pairs_of_any_lengths_agree_to_rounding(kind, lengths, seed):
    with Float64Throughout():
        assert gap(kept(kind, torch.float64), pairs_of(lengths, seed)) <= 1e-12


@settings(max_examples=30)
@given(some_pairs, st.integers(1, 41), st.integers(0, 999))
def test_any_window_agrees(lengths, window, seed):
    """Up to a token longer than the longest row, in steps of one."""
    with Float64Throughout():
        model = make_model("gemma2", sliding_window=window).double()
        assert gap(model, pairs_of(lengths, seed)) <= 1e-12


@pytest.mark.parametrize("kind", EXPERTS)
@settings(max_examples=10, derandomize=True)
@given(some_pairs, st.integers(0, 999))
def test_a_shared_prompt_is_balanced_as_two(kind, lengths, seed):
    """The sums of the balancing loss, fillers left out."""
    model, pairs = kept(kind, torch.float64), pairs_of(lengths, seed)
    pairs.append(TokenPair([5, 6, 7], [8], [9, 10], FILLER_ROW, weight=0.0))
    head, routers = find_head(model), find_routers(model)
    with Float64Throughout(), shared_attention(model):
        _, padded = trunk(model, head, PADDED.collate(pairs), routers)
        _, shared = trunk(model, head, SHARED.collate(pairs), routers)
    assert shared.tokens.item() == padded.tokens.item()
    assert shared.tokens.item() == 2 * sum(2 * p + c + r for p, c, r in lengths)  # in two layers
    assert shared.sent.tolist() == padded.sent.tolist()
    torch.testing.assert_close(shared.probability, padded.probability, rtol=1e-12, atol=0)


def test_a_pair_without_a_prompt_predicts_from_its_completions_alone(models):
    model, pairs = models("phi").double(), [TokenPair([], [5, 6, 7], [8, 9], 0)]
    padded = value_and_gradient(model, PADDED.collate(pairs))
    shared = value_and_gradient(model, SHARED.collate(pairs))
    assert shared[0] == pytest.approx(padded[0], rel=1e-12)


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
    assert [kind for kind in KINDS if SHARED.why_not(models(kind)) is not None] == []


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
    assert reason in SHARED.why_not(model)


def test_prompt_learning_is_not_shared(models):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "prompt learning" in SHARED.why_not(peft.get_peft_model(models("qwen2"), config))


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_tied", "gemma3", "deepseek_v3", "gpt_oss"])
def test_an_adapted_model_shares(kind, models):
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=r".*self_attn.*proj.*",
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(models(kind), config)
    assert SHARED.why_not(model) is None
    assert proof_of(model) is None
    assert gap(model, token_pairs(3)) <= 1e-5


def test_the_proof_passes_where_layouts_agree_and_not_where_they_do_not(models, monkeypatch):
    model, pairs = models("llama"), token_pairs(2)
    batches = SHARED.collate(pairs), PADDED.collate(pairs)
    assert layouts_disagree(model, find_head(model), *batches) is None

    def leaky(query, key, value, segments, **options):
        whole = sum(s.tokens for s in segments)
        return attend_to_pairs(query, key, value, (PairSegments(0, 0, 0, (whole,)),), **options)

    monkeypatch.setitem(ATTENTION_KERNELS, "pairwise", replace(PAIRWISE, run=leaky))
    assert "log-probabilities differ" in layouts_disagree(model, find_head(model), *batches)


class _Bent(torch.autograd.Function):
    """Leaves values alone, and makes the gradient of rows of one pair a percent larger."""

    @staticmethod
    def forward(ctx, hidden, bent):
        ctx.bent = bent
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01 if ctx.bent else gradient, None


@pytest.mark.parametrize(("dtypes", "proved"), [("float32", True), ("float32 float64", False)])
def test_a_gradient_that_rounding_alone_decides_is_asked_for_in_float64(models, dtypes, proved):
    model, pairs = models("llama"), token_pairs(2)
    batches = SHARED.collate(pairs), PADDED.collate(pairs)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    seen = []

    def bend(module, given, hidden):
        seen.append(str(hidden.dtype).removeprefix("torch."))
        return _Bent.apply(hidden, len(hidden) == 1 and seen[-1] in dtypes.split())

    model.model.layers[0].mlp.register_forward_hook(bend)
    said = layouts_disagree(model, find_head(model), *batches)
    assert said is None if proved else re.search(r"the gradient of \S+ differs by", said)
    assert seen == ["float32", "float32", "float64", "float64"]
    held = model.state_dict()
    assert all(held[name].dtype == weight.dtype for name, weight in before.items())
    assert all(torch.equal(held[name], weight) for name, weight in before.items())


def test_a_model_is_doubled_where_training_takes_as_much(models):
    model = models("llama")
    assert fits_in_double(model)
    large = torch.nn.Linear(8_192, 8_192, bias=False, device="meta")
    assert not fits_in_double(large), "nobody knows what another device has"
    assert not fits_in_double(model.to(torch.bfloat16))


def test_of_what_is_not_finite_nothing_is_proved(models):
    model, pairs = models("llama"), token_pairs(2)
    batches = SHARED.collate(pairs), PADDED.collate(pairs)
    with torch.no_grad():
        model.lm_head.weight[7, 1] = float("nan")
    said = layouts_disagree(model, find_head(model), *batches)
    assert said.startswith("log-probabilities differ by nan")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_is_no_division_by_zero(value):
    unused, whole, broken = torch.zeros(2), torch.ones(3), torch.tensor([1.0, float(value)])
    for one, other in ((whole, broken), (broken, whole)):
        place, apart = largest_difference([unused, one[:2], unused], [unused, other[:2], unused])
        assert place == 1
        assert math.isnan(apart)
    assert largest_difference([unused, whole], [unused, whole * 2]) == (1, 1.0)


REASONS = {
    "bloom": "its attention cannot be exchanged",
    "mpt": "its attention cannot be exchanged",
    "mamba": "layers of kind linear_attention",
    "jamba": "layers of kind linear_attention",
    "qwen3_next": "layers of kind linear_attention",
    "lfm2": "layers of kind conv",
    "llama4": "layers of kind chunked_attention",
    "deepseek_v32": "layers of kind indexed_attention",
    "phimoe": "its routers add noise",
}
"""Known before anything is computed."""

FOUND = {
    "stablelm": "the model does not hand the layout of a row on",
    "doge": "log-probabilities differ",
    "bart": "log-probabilities differ",
}
"""Found by the proof."""


def proof_of(model) -> str | None:
    pairs = token_pairs(2)
    return layouts_disagree(model, find_head(model), SHARED.collate(pairs), PADDED.collate(pairs))


@pytest.mark.parametrize("kind", APART)
def test_what_keeps_prompts_apart_is_named_or_found(kind, models):
    model = models(kind)
    if kind in REASONS:
        assert REASONS[kind] in SHARED.why_not(model)
    else:
        assert SHARED.why_not(model) is None
        assert FOUND[kind] in proof_of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_lets_every_kind_share(kind, models):
    assert proof_of(models(kind)) is None


def test_a_window_that_only_masks_know_of_is_found(models):
    model = models("phimoe", router_jitter_noise=0.0, input_jitter_noise=0.0)
    assert SHARED.why_not(model) is None
    assert "its window of 64 positions is known to masks only" in proof_of(model)


class _SeesItsBeginning(torch.nn.Module):
    """Attention whose tokens all see the first four of their row, as good as not at all."""

    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.attention, self.weight = attention, torch.nn.Parameter(torch.tensor(1e-9))

    def forward(self, hidden_states, **options):
        attended, weights = self.attention(hidden_states, **options)
        return attended + self.weight * hidden_states[:, :4].sum(1, keepdim=True), weights


@pytest.mark.parametrize("frozen", [(), ("embed_tokens",), ("lm_head", "embed_tokens", "layers.1")])
def test_a_token_that_wrongly_sees_another_shows_in_the_gradient_alone(frozen, models):
    """By 1e-9 of it: the values agree, and what is learnt from them does not."""
    model = models("qwen2")
    model.model.layers[0].self_attn = _SeesItsBeginning(model.model.layers[0].self_attn)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in frozen))
    assert "the gradient of model.layers.0.self_attn.weight differs" in proof_of(model)


def test_a_model_that_does_not_train_is_proved_by_its_values(models):
    assert proof_of(models("qwen2").requires_grad_(False)) is None


@pytest.mark.parametrize("training", [False, True])
def test_the_proof_leaves_nothing_behind(training, models):
    """Neither gradients nor random numbers nor buffers nor modes, and it runs under no_grad."""
    model = models("qwen3_moe").train(training)
    model.model.register_buffer("seen", torch.zeros(()))
    model.model.layers[0].register_forward_hook(lambda *_: model.model.seen.add_(1) and None)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    before = torch.get_rng_state()
    with torch.no_grad():
        assert proof_of(model) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert model.model.seen.item() == 0
    assert all(module.training is training for module in model.modules())
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, weights[name])


def test_a_keyword_of_attention_that_nobody_knows_is_refused(models, monkeypatch):
    """A selection of keys, say, that leaves none out on rows as short as those of the proof."""
    model = models("qwen2")
    attention = model.model.layers[1].self_attn
    forward = attention.forward
    monkeypatch.setattr(
        attention,
        "forward",
        lambda *args, **kwargs: forward(*args, indices=torch.ones(1), **kwargs),
    )
    assert "attention is called with indices" in proof_of(model)
