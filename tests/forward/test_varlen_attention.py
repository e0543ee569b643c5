"""The CUDA way of shared rows, with a slow kernel in the place of FlashAttention's.

``slow_kernel`` is written from the documentation of ``torch.nn.attention.varlen.varlen_attn``;
that the real one keeps to it is tested on CUDA (``tests/gpu``) and proved in every run
(``kernel_proof``).
"""

from __future__ import annotations

import logging
from inspect import signature
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen

import counterpoint.forward.kernel_proof as kernel_proof
import counterpoint.forward.kernels as kernels
import counterpoint.forward.shared_attention as shared_attention
import counterpoint.forward.varlen_attention as varlen_attention
from counterpoint.forward.agreement import layouts_disagree
from counterpoint.forward.kernel_proof import MOST_TOKENS, kernel_disagrees, prove_kernel
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.shared_attention import SharedRow
from counterpoint.forward.varlen_attention import (
    AttentionCall,
    attend_varlen,
    varlen_plan,
    varlen_takes,
)
from tests.float64 import Float64Throughout
from tests.forward.test_layouts import gap, pairs_of
from tests.forward.test_shared_attention import lengths_of_pairs, segments_of

CPU = torch.device("cpu")
CALL = AttentionCall(heads=4, kv_heads=2, width=16, value_width=16, window=None, plain=True)


def slow_kernel(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    ahead=0,
    top_left=False,
):
    """What ``varlen_attn`` documents: the last query of a sequence stands at its last key.

    Checks what the real one demands. ``ahead`` and ``top_left`` are two ways to be wrong: keys
    seen beyond the right edge, and the first query standing at the first key.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert [max_q, max_k] == [cu_seq_q.diff().max(), cu_seq_k.diff().max()]
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.dtype == key.dtype == value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    groups = query.shape[1] // key.shape[1]
    assert groups == 1 or enable_gqa
    left, right = window_size
    sequences = []
    for (q0, q1), (k0, k1) in zip(
        pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True
    ):
        q, k, v = (
            part.float().transpose(0, 1) if part.dtype.itemsize == 2 else part.transpose(0, 1)
            for part in (query[q0:q1], key[k0:k1], value[k0:k1])
        )
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        shift = 0 if top_left else (k1 - k0) - (q1 - q0)
        offset = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - shift
        seen = (offset <= right + ahead) if right >= 0 else torch.ones_like(offset, dtype=bool)
        if left >= 0:
            seen = seen & (offset >= -left)
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        sequences.append((weights.to(query.dtype).to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(sequences).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    """Puts a kernel in the place of FlashAttention's."""

    def put(function=slow_kernel):
        monkeypatch.setattr(varlen_attention, "varlen_attn", function)

    monkeypatch.setattr(kernels, "PROOFS", {})
    put()
    return put


def test_the_kernel_that_torch_has_takes_what_it_is_given():
    theirs = signature(varlen.varlen_attn).parameters
    ours = signature(slow_kernel).parameters
    assert list(ours)[:7] == list(theirs)[:7]
    for name in ("scale", "window_size", "enable_gqa"):
        assert theirs[name].kind == ours[name].kind
        assert theirs[name].default == ours[name].default


@given(lengths_of_pairs)
def test_the_plan_names_every_key_of_every_sequence(lengths):
    """Against a construction from (pair, part, number) by hand."""
    plan = varlen_plan(segments_of(lengths), CPU)
    row = [
        (prompt, part, number)
        for prompt, parts in enumerate(lengths)
        for part, length in enumerate(parts)
        for number in range(length)
    ]
    sequences = [
        [name for name in row if name[0] == prompt and name[1] in (0, side)]
        for prompt, parts in enumerate(lengths)
        for side in range(1, len(parts))
    ]
    keys = [name for sequence in sequences for name in sequence]
    assert [row[token] for token in plan.key_source.tolist()] == keys
    assert [keys[first] for first in plan.first_copy.tolist()] == row
    assert plan.first_copy.tolist() == [keys.index(name) for name in row]
    assert len(plan.copies) == max(map(len, lengths)) - 2
    for further, (tokens, copies) in enumerate(plan.copies):
        having = [name for name in row if not name[1] and len(lengths[name[0]]) > further + 2]
        assert [row[token] for token in tokens.tolist()] == having
        assert [keys[copy] for copy in copies.tolist()] == having
    every = [*plan.first_copy.tolist(), *(n for one in plan.copies for n in one[1].tolist())]
    assert sorted(every) == list(range(len(keys)))
    assert plan.key_starts.diff().tolist() == list(map(len, sequences))
    queries = [n for p, c, *others in lengths for n in (p + c, *others)]
    assert plan.query_starts.diff().tolist() == queries
    assert (plan.most_queries, plan.most_keys) == (max(queries), max(map(len, sequences)))


@given(lengths_of_pairs, st.integers(0, 999))
def test_the_gradient_of_rebuilding_is_that_of_a_gather(lengths, seed):
    plan = varlen_plan(segments_of(lengths), CPU)
    generator = torch.Generator().manual_seed(seed)
    tokens, keys = len(plan.first_copy), len(plan.key_source)
    states = torch.randn(1, 2, tokens, 3, generator=generator).double().requires_grad_()
    upstream = torch.randn(keys, 2, 3, generator=generator).double()
    rebuilt = varlen_attention._rebuilt(states, plan)
    gathered = states[0].transpose(0, 1).index_select(0, plan.key_source)
    torch.testing.assert_close(rebuilt, gathered, rtol=0, atol=0)
    found, expected = (torch.autograd.grad(r, states, upstream)[0] for r in (rebuilt, gathered))
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


@settings(max_examples=60)
@given(
    lengths_of_pairs,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.none() | st.floats(0.1, 2),
    st.none() | st.integers(1, 20),
    st.integers(0, 999),
)
def test_all_pairs_at_once_are_the_pairs_one_by_one(
    lengths, kv_heads, groups, value_width, scaling, window, seed
):
    segments = segments_of(lengths)
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(map(sum, lengths))
    shapes = [(groups * kv_heads, 4), (kv_heads, 4), (kv_heads, value_width)]
    states = [
        torch.randn(1, heads, tokens, width, generator=generator).double().requires_grad_()
        for heads, width in shapes
    ]
    options = {"scaling": scaling, "window": window}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_attention, "varlen_attn", slow_kernel)
        found = attend_varlen(*states, varlen_plan(segments, CPU), **options)
    expected = attend_to_pairs(*states, segments, **options)
    upstream = torch.randn(expected.shape, generator=generator).double()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(expected, states, upstream),
        torch.autograd.grad(found, states, upstream),
        strict=True,
    ):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


class Always(dict):
    """Proofs of everything."""

    def get(self, key: object, default: object = None) -> None:
        return None


def both_plans(segments, proofs=None) -> SharedRow:
    """A row as it is on CUDA."""
    plans = {"varlen": varlen_plan(segments, CPU), "pairwise": segments}
    return SharedRow(plans, kernels.PROOFS if proofs is None else proofs)


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3", "deepseek_v3", "mixtral"])
def test_models_learn_the_same_through_the_kernel(kind, kernel, models, monkeypatch):
    calls = []
    kernel(lambda *args, **kwargs: calls.append(0) or slow_kernel(*args, **kwargs))
    monkeypatch.setattr(SharedRow, "of", lambda segments, device: both_plans(segments, Always()))
    with Float64Throughout():
        model = models(kind).double()
        assert gap(model, pairs_of([(7, 5, 9), (1, 12, 3), (20, 2, 2)], 0)) <= 1e-12
    assert len(calls) == 2  # one a layer


def test_under_autocast_the_kernel_gets_what_products_get(kernel):
    """A norm of queries and keys (Qwen 3) makes them float32 where values are not."""
    plan = varlen_plan(segments_of([(2, 3, 4)]), CPU)
    states = [torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8).bfloat16()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert varlen_attention.running_dtype(states[0]) == torch.bfloat16
        assert attend_varlen(*states, plan).dtype == torch.bfloat16


def test_what_has_not_been_proved_goes_pair_by_pair(kernel, monkeypatch):
    def never(*args, **kwargs):
        pytest.fail("not proved")

    kernel(never)
    segments = segments_of([(2, 3, 4)])
    row = both_plans(segments)
    states = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    options = {"scaling": None, "window": None, "softcap": None, "sinks": None}
    call = AttentionCall.of(*states, options)
    assert (call.heads, call.kv_heads, call.width, call.value_width) == (2, 2, 8, 8)
    expected = attend_to_pairs(*states, segments)
    torch.testing.assert_close(shared_attention._attend(*states, row, **options), expected)
    kernels.PROOFS["varlen", call, torch.float32] = None
    capped = {**options, "softcap": 2.0}
    shared_attention._attend(*states, row, **capped)
    kernel(slow_kernel)
    torch.testing.assert_close(shared_attention._attend(*states, row, **options), expected)


@pytest.mark.parametrize(
    ("call", "taken"),
    [
        ({}, True),
        ({"window": 5}, True),
        ({"width": 192, "value_width": 128}, True),
        ({"plain": False}, False),
        ({"width": 12, "value_width": 12}, False),
        ({"width": 264}, False),
        ({"width": 16, "value_width": 24}, False),
    ],
)
def test_what_the_kernel_takes(call, taken):
    fields = {name: getattr(CALL, name) for name in CALL.__dataclass_fields__}
    assert varlen_takes(AttentionCall(**{**fields, **call}), torch.bfloat16) == taken
    assert not varlen_takes(AttentionCall(**{**fields, **call}), torch.float32)


PROOFS = {
    "equal heads": AttentionCall(2, 2, 16, 16, None, True),
    "shared heads": CALL,
    "window": AttentionCall(4, 2, 16, 16, 30, True),
    "window beyond the rows": AttentionCall(4, 2, 16, 16, 4096, True),
    "narrow values": AttentionCall(2, 2, 24, 16, None, True),
    "wide": AttentionCall(2, 1, 128, 128, None, True),
}
LONG = segments_of([(MOST_TOKENS,) * 3, (300, 40, 500), (3, 2, 1), (0, 5, 6), (9, 9, 9)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", PROOFS)
def test_a_right_kernel_passes_its_proof(call, dtype, kernel):
    assert kernel_disagrees(PROOFS[call], LONG, dtype, CPU) is None


def _scale_unheeded(*args, scale, **kwargs):
    return slow_kernel(*args, **kwargs)


def _heads_interleaved(query, key, value, *args, **kwargs):
    groups = query.shape[1] // key.shape[1]
    return slow_kernel(query, key.repeat(1, groups, 1), value.repeat(1, groups, 1), *args, **kwargs)


def _window_off_by_one(*args, window_size, **kwargs):
    left, right = window_size
    return slow_kernel(*args, window_size=(left + (left >= 0), right), **kwargs)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states):
        return states.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5


WRONG = {
    "one key too many": lambda *a, **k: slow_kernel(*a, ahead=1, **k),
    "first query at first key": lambda *a, **k: slow_kernel(*a, top_left=True, **k),
    "scale unheeded": _scale_unheeded,
    "heads mixed up": _heads_interleaved,
    "window one too wide": _window_off_by_one,
    "no window": lambda *a, window_size, **k: slow_kernel(*a, window_size=(-1, 0), **k),
    "a gradient halved": lambda q, k, v, *a, **o: slow_kernel(
        q, _HalfGradient.apply(k), v, *a, **o
    ),
    "not a number": lambda *a, **k: slow_kernel(*a, **k) * float("nan"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_is_found_out(wrong, kernel):
    kernel(WRONG[wrong])
    # the widest window that the proof looks at: where one key more weighs least
    call = PROOFS["window beyond the rows"] if "window" in wrong else CALL
    # and one pair, as long as the proof looks at
    assert "differ by" in kernel_disagrees(call, LONG[:1], torch.bfloat16, CPU)


def test_a_kernel_that_fails_is_found_out(kernel):
    def fails(*args, **kwargs):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nAnd more.")

    kernel(fails)
    reason = kernel_disagrees(CALL, LONG, torch.bfloat16, CPU)
    assert reason == (
        "kernel fails with RuntimeError: FlashAttention only supports Ampere GPUs or newer."
    )


@pytest.mark.parametrize("reason", [None, "values differ by 1.0e-01 where 3e-02 is rounding"])
def test_only_a_proved_kernel_is_let_in(reason, kernel, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(
        kernel_proof, "kernel_disagrees", lambda *args: asked.append(args) or reason
    )
    prove_kernel(CALL, LONG, torch.bfloat16, CPU)
    prove_kernel(CALL, LONG, torch.float32, torch.device("cuda"))
    assert not asked
    with caplog.at_level(logging.WARNING, logger="counterpoint"):
        prove_kernel(CALL, LONG, torch.bfloat16, torch.device("cuda"))
    assert len(asked) == 1
    assert kernels.PROOFS["varlen", CALL, torch.bfloat16] == reason
    assert kernels.may_run("varlen", CALL, torch.bfloat16) == (reason is None)
    assert ("attention goes pair by pair: FlashAttention's values differ" in caplog.text) == (
        reason is not None
    )


def test_the_layouts_proof_proves_each_kind_of_call_in_the_runs_dtype(models, monkeypatch):
    import counterpoint.forward.layouts as layouts
    from counterpoint.forward.head import find_head
    from counterpoint.forward.layouts import PADDED, SHARED

    model, pairs, asked = models("gemma3"), pairs_of([(3, 4, 5), (6, 7, 8)], 0), []
    monkeypatch.setattr(layouts, "prove_kernel", lambda *args: asked.append(args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            layouts_disagree(model, find_head(model), SHARED.collate(pairs), PADDED.collate(pairs))
            is None
        )
    assert {call.window for call, *_ in asked} == {8, None}
    assert {(call.heads, call.kv_heads, call.width) for call, *_ in asked} == {(4, 2, 8)}
    assert {dtype for _, _, dtype, _ in asked} == {torch.bfloat16}


def test_the_proof_leaves_the_runs_randomness_alone(kernel):
    torch.manual_seed(3)
    kernel_disagrees(CALL, LONG, torch.bfloat16, CPU)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == after
